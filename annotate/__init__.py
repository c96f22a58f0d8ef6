"""Clips in, face annotation columns out: landmarks, mesh, pose, blendshapes, quality."""

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported
