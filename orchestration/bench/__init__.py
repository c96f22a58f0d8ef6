"""`python -m orchestration.bench`: how fast the data side is, next to what a user would otherwise run.

Every figure has a baseline that did the same work on the same material on the same machine, in turns with ours.
"""
