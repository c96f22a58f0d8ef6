"""Faces as geometry: metric mesh, pose, projection, guidance images. NumPy and OpenCV only."""
