"""Recipes of Audio2Mesh."""

from __future__ import annotations

from train.audio2mesh.task import Audio2MeshConfig
from train.recipe import Recipe
from train.speech.recipes import paper_training, tiny_training


def tiny() -> Recipe:
    """A small audio encoder with random first weights: fits a handful of clips on a CPU in minutes."""
    config = Audio2MeshConfig(wav2vec="tiny", freeze_cnn=False, window_frames=50)
    return Recipe(config=config, train=tiny_training())


def paper() -> Recipe:
    """AniPortrait's: wav2vec 2.0 base, all but its CNN trained, plain L1, Adam 1e-5, slices of random length.

    Its authors train on about an hour of one actor's frontal speech, at 30 fps; here it is 25. Batch size, number of
    steps, warm-up, clipping of the gradient and averaging of the weights were not published, so those are ours. Set
    `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    config = Audio2MeshConfig(wav2vec="wav2vec2-base-960h", window_frames=250, min_window_frames=50)
    return Recipe(config=config, train=paper_training(steps=50_000))


RECIPES = {"tiny": tiny, "paper": paper}
