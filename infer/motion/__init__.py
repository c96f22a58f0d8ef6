"""How the portrait's face moves: after speech, or after the face of a driving video."""
