"""The jobs, each in one file: the whole of it over DATA, how its units are planned, and what a worker does with one.

What only workers need is imported in the functions that they run: a command that finds everything done loads none of
it. `Unit.function` names those functions in the plans of DATA folders, so they keep their names.
"""
