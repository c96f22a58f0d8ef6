"""The JSON file beside a video: which version, weights, inputs and settings made it, and what that took."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from infer.portrait import Portrait
from infer.speech import Speech
from talkinghead.provenance import hash_file, library_versions
from talkinghead.runtime.peak_memory import peak_memory as host_peak_memory

_LIBRARIES = ("talkinghead", "torch", "transformers", "diffusers", "numpy", "opencv-contrib-python", "av")


def sidecar(
    command: str,
    request: Any,
    *,
    inputs: dict[str, Any],
    weights: dict[str, Any],
    result: dict[str, Any],
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """The whole document.

    Args:
        command: Of `python -m infer`.
        request: Its options, a dataclass.
        inputs: What was read.
        weights: Part → where it is from and its hash.
        result: What came out and what was decided on the way.
        seconds: Stage → wall time.
        device: Where the models ran.
    """
    return {
        "command": command,
        "settings": dataclasses.asdict(request),
        "inputs": inputs,
        "weights": weights,
        "result": result | {"device": device},
        "libraries": library_versions(*_LIBRARIES),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
    }


def describe_portrait(path: Path, portrait: Portrait, face_model: str) -> dict[str, Any]:
    """The portrait, for `inputs`; `face_model` is the hash of the model that measured it."""
    return {
        "sha256": hash_file(path),
        "size": [portrait.width, portrait.height],
        "face": [round(value, 5) for value in portrait.face.extent],
        "face_model": face_model,
    }


def describe_speech(path: Path, speech: Speech) -> dict[str, Any]:
    """The speech, for `inputs`."""
    return {"sha256": hash_file(path), "seconds": round(speech.duration_s, 6), "silent": speech.silent}


def peak_memory(device: str) -> dict[str, int]:
    """Most memory that this process had so far: `host`, and that of the device where it says so."""
    found = {"host": host_peak_memory()}
    if device not in ("cpu", "mps"):
        import torch

        module: Any = torch.get_device_module(torch.device(device))
        found["device"] = int(module.max_memory_allocated())
    return found
