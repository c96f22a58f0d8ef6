"""Lmk2Video: denoiser, ReferenceNet, PoseGuider, and loading of the published weights."""
