"""Units of work: what one is, its records, and running all of them exactly once."""
