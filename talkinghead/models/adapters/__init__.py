"""Small weights that are trained next to frozen ones."""
