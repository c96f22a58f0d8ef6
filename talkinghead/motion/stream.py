"""Motion on its way from a driver to a renderer: parts in order, of a number of frames that is known before the first.

So a renderer can lay its windows over the whole video, and shows the first frames while later ones are not made yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from talkinghead.motion.motion import Motion
from talkinghead.motion.parts import PART


class MotionStream(Iterator[Motion]):
    """Parts of one motion in order; whoever takes them holds no more than one.

    Args:
        parts: Parts, all of one face, image and frame rate.
        count: Number of frames of all parts together.
        fps: Frame rate of the parts.
    """

    def __init__(self, parts: Iterable[Motion], *, count: int, fps: float) -> None:
        if count < 1:
            raise ValueError("a motion has at least one frame")
        self._parts = iter(parts)
        self._done = 0
        self.count = count
        """Number of frames of the whole motion, those that were taken included."""
        self.fps = fps
        """Frame rate in frames per second."""

    @classmethod
    def of(cls, motion: Motion, size: int = PART) -> MotionStream:
        """A motion that is there whole, in parts of `size` frames."""
        starts = range(0, len(motion), size)
        parts = (motion.part(first, min(size, len(motion) - first)) for first in starts)
        return cls(parts, count=len(motion), fps=motion.fps)

    def __next__(self) -> Motion:
        """The next part.

        Raises:
            ValueError: The driver gives fewer or more frames than it said, or another frame rate.
        """
        part = next(self._parts, None)
        if part is None:
            if self._done != self.count:
                raise ValueError(f"the motion ends after {self._done} of {self.count} frames")
            raise StopIteration
        self._done += len(part)
        if part.fps != self.fps or self._done > self.count:
            raise ValueError(
                f"the motion was to have {self.count} frames at {self.fps:g} per second, but has {self._done} at"
                f" {part.fps:g}"
            )
        return part

    def each(self, change: Callable[[Motion, int], Motion]) -> MotionStream:
        """The motion with every part changed.

        Args:
            change: Function of a part and the number of its first frame; the result has as many frames.
        """

        def changed() -> Iterator[Motion]:
            first = 0
            for part in self:
                yield change(part, first)
                first += len(part)

        return MotionStream(changed(), count=self.count, fps=self.fps)

    def whole(self) -> Motion:
        """All parts that were not taken, as one motion: for what needs the whole, in memory for it."""
        return Motion.join(list(self))
