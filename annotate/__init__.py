"""Clips in, face annotation columns out: landmarks, mesh, pose, blendshapes, quality."""
