"""What both trainings of Lmk2Video share: settings, data, the module, noise and loss."""
