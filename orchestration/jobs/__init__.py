"""The jobs as units: how each is planned, and the function that a worker runs."""
