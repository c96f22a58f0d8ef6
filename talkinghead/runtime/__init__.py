"""Parts that all processes share: command line, errors, progress, device, child processes, joining a Ray cluster."""
