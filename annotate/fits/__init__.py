"""Global fits, a file each: what is computed once over all kept training clips."""
