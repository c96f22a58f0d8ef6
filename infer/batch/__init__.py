"""Many videos in one process, from a table or from two folders."""
