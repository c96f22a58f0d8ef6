"""What a training takes, told before it starts: memory, time, disk, and whether all of it fits."""
