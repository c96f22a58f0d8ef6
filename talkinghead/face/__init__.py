"""The face networks that several jobs need: which model file, and the detector."""
