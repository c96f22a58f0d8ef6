"""The report of a data set: what became of every input, and how the samples look."""
