"""`python -m orchestration.bench`: how fast the data side is, next to what a user would otherwise run.

Every figure stands next to a baseline that did the same work on the same frames in the same process group, in turns.
"""
