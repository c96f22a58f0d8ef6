"""Recipes of Audio2Pose."""

from __future__ import annotations

import dataclasses

from train.audio2pose.task import Audio2PoseConfig
from train.recipe import Recipe
from train.speech.recipes import paper_training, tiny_training


def tiny() -> Recipe:
    """A small encoder and decoder with random first weights: fits a handful of clips on a CPU in minutes."""
    config = Audio2PoseConfig(
        wav2vec="tiny",
        freeze_cnn=False,
        width=128,
        layers=2,
        heads=4,
        feed_forward=256,
        window_frames=75,
        context=38,
        history_noise=1.0,
    )
    return Recipe(config=config, train=tiny_training())


def paper() -> Recipe:
    """The paper's: wav2vec 2.0 base, an eight-layer decoder that looks at a window of the speech, L1, Adam 1e-5, HDTF.

    Ours are: poses about the clip's rest pose, in standard deviations; a bounded past with a repeating position code;
    noise on the history; no dropout; 25 fps; batch size, number of steps, warm-up, clipping of the gradient and
    averaging of the weights, which were not published. Set `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    return Recipe(config=Audio2PoseConfig(wav2vec="wav2vec2-base-960h"), train=paper_training(steps=100_000))


def compat() -> Recipe:
    """The published network's attention: each frame sees its own audio feature only (a diagonal mask), 600 positions
    counted from the window's start, poses relative to the first frame, 100 identities, no noise on the history.

    It learns on 2 to 10 s; at inference, speech of more than 10 s goes on in chunks that begin with 5 s of the one
    before.
    """
    recipe = paper()
    config = dataclasses.replace(
        recipe.config,
        num_identities=100,
        memory_attention="diagonal",
        context=None,
        position_period=600,
        restart_frames=125,
        pose_origin="first",
        history_noise=0.0,
        normalise_pose=False,
        window_frames=250,
        min_window_frames=50,
    )
    return dataclasses.replace(recipe, config=config)


RECIPES = {"tiny": tiny, "paper": paper, "compat": compat}
