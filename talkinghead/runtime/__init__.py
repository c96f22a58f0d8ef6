"""What running processes share: command line, progress, device, child processes, joining a Ray cluster."""
