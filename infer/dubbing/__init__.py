"""Dubbing: new speech for a video, whose head, eyes and background stay as they are."""
