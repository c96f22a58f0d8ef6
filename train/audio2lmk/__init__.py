"""What the trainings from speech share: the clips, the windows, the base of their tasks, what validation shows."""
