"""The jobs, one file each: the whole job over DATA, how its units are planned, and what a worker does with one of them.

Libraries that only workers need are imported in the functions that workers call: a command that finds everything done
loads none of them. Units name those functions as text (`Unit.function`), so they keep their names.
"""
