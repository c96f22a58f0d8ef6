"""Videos with damaged packets, next to the same ones undamaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from tests.support.media_files import write_video

ENCODERS = {
    "h264": ("libx264", {"crf": "23", "g": "25", "bf": "2"}),
    "hevc": (
        "libx265",
        {"crf": "26", "x265-params": "log-level=none:keyint=25:min-keyint=25:scenecut=0:open-gop=0:pools=1"},
    ),
    "vp9": ("libvpx-vp9", {"crf": "30", "b": "0", "g": "25", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", {"qscale": "4", "flags": "+qscale", "g": "25"}),
}
"""Codec → encoder and its options, with a key frame every 25 frames."""


def moving_scene(count: int, width: int = 256, height: int = 256, seed: int = 0) -> list[np.ndarray]:
    """Images of a soft texture that moves, like a face before a background: detail at all sizes, no hard lines."""
    rng = np.random.default_rng(seed)
    layers = []
    for grain, strength in ((64, 60), (16, 30), (4, 12)):
        noise = rng.normal(size=(height * 2 // grain, width * 2 // grain, 3)).astype(np.float32)
        layers.append(cv2.resize(noise, (width * 2, height * 2), interpolation=cv2.INTER_CUBIC) * strength)
    texture = sum(layers) + 128
    images = []
    for number in range(count):
        x, y = width / 2 + width / 4 * np.sin(number / 9), height / 2 + height / 8 * np.cos(number / 7)
        move = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        images.append(np.clip(cv2.warpAffine(texture, move, (width, height)), 0, 255).astype(np.uint8))
    return images


def encoded(path: Path, codec: str, images: list[np.ndarray], **options: str) -> Path:
    """Encode images with one of `ENCODERS`."""
    name, usual = ENCODERS[codec]
    return write_video(path, images, codec=name, options={**usual, **options})


def with_packets_changed(path: Path, out: Path, change: Callable[[int, av.Packet], bytes | None]) -> Path:
    """A copy of a video, each packet's bytes as `change` says (its number, the packet); None leaves the packet out."""
    with av.open(str(path)) as source, av.open(str(out), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        number = 0
        for packet in source.demux(stream):
            if not packet.size:
                continue
            data = change(number, packet)
            number += 1
            if data is None:
                continue
            changed = av.Packet(data)
            changed.pts, changed.dts, changed.duration = packet.pts, packet.dts, packet.duration
            changed.time_base, changed.is_keyframe, changed.stream = packet.time_base, packet.is_keyframe, copy
            container.mux(changed)
    return out


def flipped(packet: av.Packet, rng: np.random.Generator, count: int = 1) -> bytes:
    """A packet's bytes with some of them changed, none near its start."""
    data = bytearray(bytes(packet))
    for at in rng.integers(min(30, len(data) - 1), len(data), count):
        data[at] ^= int(rng.integers(1, 256))
    return bytes(data)
