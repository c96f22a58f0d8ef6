"""The weights that a user names: found and looked at first, loaded or converted later."""
