"""Trainings of Lmk2Video: settings, data, the module, noise and loss of both stages, and a file for each stage."""
