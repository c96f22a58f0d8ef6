"""The size of generated pictures: what is asked for, what the weights were trained with, what the networks can take."""

from __future__ import annotations

from infer.request import PREVIEW_SIDE
from talkinghead.media.talking_video import check_video_size


def video_size(width: int, height: int, asked_width: int | None, asked_height: int | None) -> tuple[int, int]:
    """Size of the video for a reference of `width` x `height` pixels.

    What is not asked for follows from the other side; with neither it is the reference's size. Made even, downwards.

    Raises:
        ValueError: A size that cannot be encoded.
    """
    if asked_width is not None and asked_height is not None:
        size = (asked_width, asked_height)
    elif asked_width is not None:
        size = (asked_width, _even(height * asked_width / width))
    elif asked_height is not None:
        size = (_even(width * asked_height / height), asked_height)
    else:
        size = (_even(width), _even(height))
    try:
        check_video_size(*size)
    except ValueError as error:
        raise ValueError(f"{error}; set --width and --height") from error
    return size


def _even(length: float) -> int:
    return int(length) // 2 * 2


def frame_size(
    width: int | None, height: int | None, *, trained: tuple[int, int], aspect: float | None, step: int, preview: bool
) -> tuple[int, int]:
    """Width and height of the pictures to generate.

    Args:
        width: Asked for; None: what suits the rest.
        height: Likewise.
        trained: Size that the weights know.
        aspect: Width / height where it is free; None: the trained one.
        step: Both sides are multiples of this.
        preview: Make it no larger than `PREVIEW_SIDE`.

    Raises:
        ValueError: What is asked for is no multiple of `step`; names the nearest that are.
    """
    _check(width, height, step)
    if width is None or height is None:
        free = trained[0] / trained[1] if aspect is None else aspect
        if width is not None:
            height = _rounded(width / free, step)
        elif height is not None:
            width = _rounded(height * free, step)
        else:
            area = trained[0] * trained[1]
            width, height = _rounded((area * free) ** 0.5, step), _rounded((area / free) ** 0.5, step)
    if preview and max(width, height) > PREVIEW_SIDE:
        shrink = PREVIEW_SIDE / max(width, height)
        width, height = _rounded(width * shrink, step), _rounded(height * shrink, step)
    return width, height


def _rounded(length: float, step: int) -> int:
    return max(step, round(length / step) * step)


def _check(width: int | None, height: int | None, step: int) -> None:
    for name, side in (("--width", width), ("--height", height)):
        if side is not None and side % step:
            near = sorted({max(step, side // step * step), side // step * step + step})
            raise ValueError(
                f"{name} is {side}, but with these weights it must be a multiple of {step}: take"
                f" {' or '.join(map(str, near))}"
            )
