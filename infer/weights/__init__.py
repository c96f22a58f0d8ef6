"""Weights that a user names: found and checked first, loaded or converted later."""
