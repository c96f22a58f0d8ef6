"""Motion of the portrait's face: from speech, or from the face in a driving video."""
