"""A run of each job over everything in DATA: ingest, annotate, pack; and the finish that readers see.

A run plans its units from what stands in DATA, runs those that have no record, and leaves its plan behind. What is
packed never changes: later settings, libraries and sources leave packed clips as they are, or are refused.
"""
