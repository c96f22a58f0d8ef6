"""Shots of drawn people who speak and sway, and the ways in which one shot becomes another."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

SIDE = 96
"""Width and height of the images in pixels."""

Shot = list[np.ndarray]
Mixed = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""An image between one of the shot before and one of the shot after, by how far the change has gone."""


def shot(seed: int, count: int, side: int = SIDE) -> Shot:
    """A person before a wall: RGB uint8 images `[side, side, 3]`; head and mouth move in each one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 235, (6, 6, 3), dtype=np.uint8)
    wall = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    skin, hair, shirt = (tuple(int(level) for level in random.integers(30, 230, 3)) for _ in range(3))
    images = []
    for k in range(count):
        image = wall.copy()
        x = round(side * (0.5 + 0.03 * np.sin(k / 7 + seed)))
        y = round(side * (0.45 + 0.015 * np.sin(k / 5)))
        cv2.ellipse(image, (side // 2, side), (side // 3, side // 4), 0, 0, 360, shirt, -1)
        cv2.ellipse(image, (x, y - side // 20), (side // 5, side // 4), 0, 0, 360, hair, -1)
        cv2.ellipse(image, (x, y), (side // 6, side // 5), 0, 0, 360, skin, -1)
        for eye in (-1, 1):
            cv2.circle(image, (x + eye * side // 14, y - side // 20), side // 40, (20, 20, 20), -1)
        opening = round(side / 40 * (1 + np.sin(k * 1.3)))
        cv2.ellipse(image, (x, y + side // 9), (side // 16, 1 + opening), 0, 0, 360, (120, 30, 40), -1)
        noise = random.normal(0, 1.5, image.shape)
        images.append(np.clip(image + noise, 0, 255).astype(np.uint8))
    return images


def dissolve(before: Shot, after: Shot, length: int) -> Shot:
    """The two shots with a dissolve: their last and first `length` images are mixed."""
    return _changed(before, after, length, lambda a, b, share: cv2.addWeighted(a, 1 - share, b, share, 0))


def wipe(before: Shot, after: Shot, length: int, direction: str) -> Shot:
    """The two shots with a wipe over `length` images: `right`, `left`, `down` or `up`."""

    def mixed(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
        place = np.linspace(0, 1, len(a))
        place = place if direction in ("right", "down") else 1 - place
        mask = (place < share)[None, :, None] if direction in ("right", "left") else (place < share)[:, None, None]
        return np.where(mask, b, a)

    return _changed(before, after, length, mixed)


def fade(before: Shot, after: Shot, length: int, level: int) -> Shot:
    """The two shots with a fade through one grey level over `length` images."""
    blank = np.full_like(before[0], level)

    def mixed(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
        seen, shown = (a, 1 - 2 * share) if share < 0.5 else (b, 2 * share - 1)
        return cv2.addWeighted(seen, shown, blank, 1 - shown, 0)

    return _changed(before, after, length, mixed)


def _changed(before: Shot, after: Shot, length: int, mixed: Mixed) -> Shot:
    shares = [(k + 1) / (length + 1) for k in range(length)]
    between = [mixed(a, b, share) for a, b, share in zip(before[-length:], after[:length], shares, strict=True)]
    return [*before[:-length], *between, *after[length:]]
