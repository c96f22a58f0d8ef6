"""Audio2Lmk: Audio2Mesh and Audio2Pose, speech to mesh offsets and head pose."""
