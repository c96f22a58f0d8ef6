"""The steps of the data side, each over everything in DATA: ingest, annotate, pack, finish.

A step plans its units from what stands in DATA, runs those that have no record, and leaves its plan behind. What is
packed never changes: later settings, libraries and sources leave packed clips as they are, or are refused.
"""
