"""The face model that several jobs need: its files and where they come from, its networks, and the detector."""
