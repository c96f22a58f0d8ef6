"""Drivers and renderers: what gives motion, what shows it, and what lies between a driver and a renderer.

A driver makes motion of a portrait's face out of a source (speech, a video, a file). A renderer makes frames out of a
portrait and motion. They meet in `Motion` alone, so any driver goes with any renderer that takes its kind of motion, by
way of conversions; `pair` names these with their loss, or says why two do not fit. It asks for `gives` and `takes`
only, which are known from names and configurations: no weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from talkinghead.face.portrait import Portrait
from talkinghead.motion.motion import CoefficientSpace, Motion
from talkinghead.motion.stream import MotionStream
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.timebase import FPS

MESHES = "meshes"
"""Space of motion that holds metric meshes."""
LANDMARKS = "landmarks"
"""What a renderer takes that looks at points in the image: any motion with meshes has them."""
HEAD = "head"
"""Space of motion in which the head alone moves."""


@dataclass(frozen=True, kw_only=True)
class MotionKind:
    """Kind of motion: what a driver gives, or one of those that a renderer takes."""

    space: str
    """What the face does is told in: `MESHES`, `HEAD`, a renderer's `LANDMARKS`, or the id of a coefficient space."""
    fps: float | None = None
    """Frame rate that a driver or renderer was made for; None: any."""
    needs: tuple[str, ...] = ()
    """What a driver looks at in the portrait: `image`, `mesh`, …"""
    delay: int | None = 0
    """Frames that a driver looks ahead of those it gives; None: it needs the whole source first."""
    compat: bool = False
    """Whether a renderer's landmarks are projected as AniPortrait does, see `Motion.landmarks`."""


@dataclass(frozen=True, kw_only=True)
class FrameSize:
    """Sizes of frames that a renderer can make."""

    width: int | None = None
    """Width in pixels that it was made for; None: any."""
    height: int | None = None
    """Height in pixels that it was made for; None: any."""
    step: int = 2
    """Number of pixels of which both sides are multiples."""

    def check(self, width: int, height: int) -> None:
        """Raise `ValueError` for a size that is no multiple of the step."""
        if width < 1 or height < 1 or width % self.step or height % self.step:
            raise ValueError(f"frames of {width}x{height} pixels: both sides must be multiples of {self.step}")


class Driver(Protocol):
    """What gives motion.

    Its class also has `holds(folder)` and `of_folder(folder)` where it lies in a folder, and where it takes options on
    the command line `options`, a frozen dataclass.
    """

    name: str
    """Name in the registry, and in a video's sidecar."""

    @property
    def gives(self) -> MotionKind:
        """Kind of its motion, known without its weights."""
        ...

    def check(self, portrait: Portrait, source: Any, options: Any) -> None:
        """Refuse everything that the user can get wrong, before weights are read.

        Args:
            portrait: Portrait as it is animated (its crop).
            source: What drives: samples, a file, a length.
            options: Settings of this driver, a dataclass; None: its defaults.

        Raises:
            ValueError: Something does not fit; says what, and what would.
        """
        ...

    def move(
        self,
        portrait: Portrait,
        source: Any,
        options: Any,
        *,
        fps: float | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> MotionStream:
        """Motion of the portrait's face, in the portrait's camera, in parts.

        Args:
            portrait: As for `check`, like the next two.
            source: What drives.
            options: Settings, or None.
            fps: Frame rate of the result; None: the driver's own.
            seed: Seed of everything random.
            progress: Progress callback; None: none.

        Raises:
            ValueError: As `check` does; with the parts, what only the computation shows.
        """
        ...

    def about(self) -> dict[str, dict[str, Any]]:
        """What the last `check` and `move` found, for a record: any of `input`, `weights`, `result`."""
        ...


class Prepared(Protocol):
    """What a renderer made of a portrait: good for any number of motions."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels."""
        ...


class Renderer(Protocol):
    """What makes frames. Its class also has `holds(folder)` and `of_folder(folder)` where it lies in a folder."""

    name: str
    """Name in the registry, and in a video's sidecar."""

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """Kinds of motion that it shows, the best first; known without its weights."""
        ...

    @property
    def size(self) -> FrameSize:
        """Sizes of its frames, known without its weights."""
        ...

    def prepare(self, portrait: Portrait | None, options: Any) -> Prepared:
        """What is made of the portrait once, checked before weights are read.

        Args:
            portrait: Portrait as it is animated; None for a renderer that shows none.
            options: Settings of this renderer, a dataclass; None: its defaults.

        Raises:
            ValueError: Something does not fit; says what, and what would.
        """
        ...

    def render(
        self, prepared: Any, motion: MotionStream, *, seed: int = 0, progress: ProgressCallback | None = None
    ) -> Iterator[np.ndarray]:
        """Frames RGB uint8 `[H, W, 3]`, as many as the motion has, each as soon as it is final.

        Args:
            prepared: Result of `prepare`.
            motion: Motion of a kind that it takes; it is taken as far as the frames need.
            seed: Seed of everything random.
            progress: Progress callback; None: none.

        Raises:
            ValueError: The motion cannot be shown.
        """
        ...


class Gives(Protocol):
    """What `pair` asks of a driver, an object or its class."""

    name: str

    @property
    def gives(self) -> MotionKind:
        """Kind of its motion."""
        ...


class Takes(Protocol):
    """What `pair` asks of a renderer, an object or its class."""

    name: str

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """Kinds of motion that it shows."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A step from a driver's motion to what a renderer takes."""

    name: str
    """What it does."""
    loss: str
    """What is lost by it."""
    apply: Callable[[Motion], Motion] | None = None
    """Function of a part of the motion; None: the driver or the renderer does it."""

    def __str__(self) -> str:
        return f"{self.name} ({self.loss})"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """A driver and a renderer that fit."""

    driver: str
    """Name of the driver."""
    renderer: str
    """Name of the renderer."""
    fps: float
    """Frame rate of the motion and of the frames."""
    conversions: tuple[Conversion, ...]
    """Steps between them, in order."""

    def convert(self, motion: MotionStream) -> MotionStream:
        """The driver's motion as the renderer takes it."""
        for conversion in self.conversions:
            if (apply := conversion.apply) is not None:
                motion = motion.each(lambda part, first, apply=apply: apply(part))
        return motion


def pair(
    driver: Gives, renderer: Takes, *, fps: float | None = None, spaces: Sequence[CoefficientSpace] = ()
) -> Pairing:
    """What lies between a driver and a renderer; no weights are read.

    Args:
        driver: Driver, or its class.
        renderer: Renderer, or its class.
        fps: Frame rate that is wanted; None: the renderer's, else the driver's, else 25.
        spaces: Spaces of coefficients that can be turned into meshes, and meshes into them.

    Raises:
        ValueError: They do not fit; says why.
    """
    gives, known = driver.gives, {space.id: space for space in spaces}
    for kind in renderer.takes:
        steps = _steps(gives.space, kind, known)
        if steps is None:
            continue
        rate = fps or kind.fps or gives.fps or FPS
        if gives.fps not in (None, rate):
            name = f"motion resampled from {gives.fps:g} to {rate:g} frames per second"
            steps = (Conversion(name=name, loss="between two frames it is interpolated linearly"), *steps)
        return Pairing(driver=driver.name, renderer=renderer.name, fps=rate, conversions=steps)
    wanted = " or ".join(kind.space for kind in renderer.takes)
    reason = f"{driver.name} gives {gives.space}, and {renderer.name} takes {wanted}"
    if gives.space == HEAD:
        raise ValueError(f"{reason}: another driver must move the face (--mouth audio:FILE --pose {driver.name})")
    if gives.space != MESHES and gives.space not in known:
        raise ValueError(f"{reason}: coefficients of {gives.space} cannot be turned into meshes here")
    raise ValueError(f"{reason}: no conversion leads from one to the other")


def _steps(space: str, wanted: MotionKind, known: dict[str, CoefficientSpace]) -> tuple[Conversion, ...] | None:
    """Conversions from a space to what is wanted; None where there is no way."""
    if space == wanted.space:
        return ()
    if space in known:
        decode = Conversion(
            name=f"meshes of coefficients of {space}",
            loss="none: they are what the coefficients stand for",
            apply=lambda part: part.with_mesh(known[space]),
        )
        rest = _steps(MESHES, wanted, {})
        return None if rest is None else (decode, *rest)
    if space != MESHES:
        return None
    if wanted.space == LANDMARKS:
        seen = " as AniPortrait sees them" if wanted.compat else ""
        name = f"landmarks of meshes and head poses, seen by the portrait's camera{seen}"
        return (Conversion(name=name, loss="depth; 3e-5 px at 512 by rounding"),)
    if wanted.space in known:
        encode = Conversion(
            name=f"coefficients of {wanted.space}",
            loss="what lies outside of the space: the nearest mesh in it is shown",
            apply=lambda part: part.with_coefficients(known[wanted.space]),
        )
        return (encode,)
    return None
