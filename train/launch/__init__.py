"""Who starts the ranks of a training, and what each rank runs."""
