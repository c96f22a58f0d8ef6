"""Examination of a training as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from train.doctor.examination import Examination
from train.doctor.footprint import count_text, size_text


def report(found: Examination) -> str:
    """Lines about each part of an examination; the last one says whether the training can start."""
    lines = [
        *_about(found),
        *_memory(found),
        *_time(found),
        *_disk(found),
        *(f"problem  {problem}" for problem in found.problems),
        "the training cannot start as it is" if found.problems else "the training can start, and everything fits",
    ]
    return "\n".join(lines)


def _about(found: Examination) -> Iterator[str]:
    yield f"task     {found.task}, recipe {found.recipe}"
    yield f"data     {found.data}"
    goes_on = f"goes on from step {found.done}" if found.done else "begins"
    yield f"RUN      {found.run}: {goes_on}, {found.steps} steps"
    for setting, weights in found.weights.items():
        yield f"weights  {setting}: {weights['name']}, sha256 {weights['sha256'][:16]}"
    ranks = ", ".join(map(str, found.fitting_ranks))
    yield f"batch    {found.samples} samples a step in {found.microbatches}; fitting ranks {ranks}, asked {found.ranks}"


def _memory(found: Examination) -> Iterator[str]:
    needed, measured, room = found.needed, found.measured, found.room
    if needed is None:
        return
    yield f"network  {count_text(needed.trained)} of {count_text(needed.parameters)} parameters are trained"
    parts = {
        "weights": needed.weights_bytes,
        "gradients": needed.gradients_bytes,
        "moments": needed.moments_bytes,
        "averages": needed.averages_bytes,
    }
    counted = ", ".join(f"{name} {size_text(count)}" for name, count in parts.items())
    yield f"memory   a rank holds {size_text(needed.state_bytes)}: {counted}"
    yield f"         rank 0 keeps {size_text(needed.copy_bytes)} more in the computer's memory, a copy for exports"
    if measured is None:
        yield "         activations: not known, since nothing was measured"
    elif found.device_bytes is not None:
        rest = size_text(max(0, found.device_bytes - needed.state_bytes))
        yield f"         {size_text(found.device_bytes)} of the GPU at its peak, {rest} of it activations and the like"
    if measured is not None and found.host_bytes is not None:
        yield (
            f"         the ranks here take {size_text(found.host_bytes)} of the computer's memory, of which libraries"
            f" {size_text(measured.libraries_bytes)} each; reading processes and validations come on top"
        )
    if room is not None:
        gpu = "" if room.device_bytes is None else f"{size_text(room.device_bytes)} of {room.device}, "
        yield f"         free: {gpu}{size_text(room.host_bytes)} of the computer's memory"


def _time(found: Examination) -> Iterator[str]:
    measured = found.measured
    if measured is None or found.seconds is None or found.room is None:
        return
    left = timedelta(seconds=round(found.seconds))
    yield (
        f"time     {left} for the steps that are left, {measured.step_s:.3g} s each, {100 * measured.data_wait:.0f} %"
        f" of it waiting for data, by {measured.steps} steps of one rank on {found.room.device} here; validations"
        " and the exchange between ranks are not in it"
    )


def _disk(found: Examination) -> Iterator[str]:
    if (disk := found.disk) is None:
        return
    least = "at least " if disk.export_is_least else ""
    yield (
        f"disk     up to {size_text(disk.needed_bytes)}: {disk.checkpoints} checkpoints of"
        f" {size_text(disk.checkpoint_bytes)}, {1 + disk.copies} exports (for use, and of validated steps) of"
        f" {least}{size_text(disk.export_bytes)}; free: {size_text(disk.free_bytes)}"
    )
