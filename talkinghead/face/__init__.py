"""The face model that several jobs need: its files, networks and detector; and the portrait, once it is measured."""
