"""`python -m orchestration.bench -o build/bench.json`: measure, write the rows, and show them.

A goal that is missed is reported as it is; the exit status is 0.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from orchestration.bench.row import Row, show_rows, write_rows
from orchestration.bench.timing import library_output_in, pin_threads
from talkinghead.runtime.command_line import run_command_line

_LIBRARIES = ("mediapipe", "ai-edge-litert", "av", "decord2", "ray", "webdataset", "numpy", "torch", "transformers")


def bench(
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("build/bench.json"),
    source: Path | None = None,
    scratch: Path | None = None,
    frames: int = 400,
    mebibytes: int = 256,
    repeats: int = 3,
) -> str:
    """Measure the data side against its peers, and the training and inference of the speech-driven models.

    Args:
        output: File to write; what libraries print goes next to it, with the suffix `.log`.
        source: Folder with videos (default: the real clips next to the repository, else the embedded sample).
        scratch: Folder to work in (default: that of the output file). What the bench makes there is removed.
        frames: Least number of frames to annotate in each round.
        mebibytes: Size of the shards to pack and read, in MiB.
        repeats: Number of rounds of each comparison.
    """
    pin_threads()  # before anything numerical is imported
    started = time.perf_counter()
    parent = scratch or output.parent
    parent.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Scratch on the disk of the output rather than in /tmp, which may be memory. Libraries print into the log, so that
    # they do not break the status line.
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder,
        library_output_in(output.with_suffix(".log")) as terminal,
    ):
        console = Console(file=terminal)
        rows, about = _measure(Path(folder), source, frames, mebibytes, repeats, console)
    about["seconds"] = round(time.perf_counter() - started, 1)
    write_rows(output, rows, about)
    show_rows(rows, Console(stderr=True, width=None if sys.stderr.isatty() else 110))
    return str(output)


def _measure(
    folder: Path, given: Path | None, frames: int, mebibytes: int, repeats: int, console: Console
) -> tuple[list[Row], dict[str, Any]]:
    """Measure everything; returns the rows, and what they were measured on."""
    # Here, after `pin_threads`: numerical libraries read the number of threads when they are imported.
    from orchestration.bench.annotate_rows import annotate_rows
    from orchestration.bench.decode_rows import decode_rows
    from orchestration.bench.job_rows import job_rows
    from orchestration.bench.material import find_source, prefer_shared_models, read_material
    from orchestration.bench.neighbour_rows import neighbour_rows
    from orchestration.bench.ray_rows import ray_rows
    from orchestration.bench.reading_rows import latent_row, reading_rows
    from orchestration.bench.shard_rows import copy_material, pack_row, read_row
    from orchestration.bench.speech_rows import speech_rows
    from orchestration.bench.train_rows import train_rows
    from orchestration.bench.video_rows import video_rows
    from talkinghead.face.resolve import resolve_face_model
    from talkinghead.files.storage import Storage
    from talkinghead.provenance import library_versions

    prefer_shared_models()
    model = resolve_face_model()
    # One phase after the other, so that none slows down another. Each has a folder of its own.
    with console.status("videos") as status:
        source = find_source(given, folder)
        status.update(f"building a data set from {source.name}, twice, and annotating it anew")
        jobs = job_rows(source.folder, folder / "data")
        # The finished data set is the material of the comparisons below.
        material = read_material(Storage(folder / "data"), frames)
        status.update(f"annotating {material.num_frames} frames, {repeats} rounds")
        annotating, speed = annotate_rows(material, model, _new(folder / "annotate"), repeats)
        status.update("decoding with PyAV and decord")
        engines = decode_rows(material, _new(folder / "source"), repeats)
        status.update("ray.data.read_videos")
        decoding = ray_rows(material, speed, _new(folder / "videos"), repeats)
        status.update(f"packing and reading {mebibytes} MiB")
        copies = copy_material(material, _new(folder / "copies"), mebibytes << 20)
        packing = [pack_row(copies, repeats), read_row(copies, repeats)]
        status.update("reading for both stages, locally and from a store")
        reading = reading_rows(Storage(folder / "data"))
        status.update("encoding latents")
        reading.append(latent_row(material, repeats))
        status.update("training Audio2Mesh at its published size")
        training = train_rows(Storage(folder / "data"), _new(folder / "train"))
        status.update("speech-driven models at their published size")
        speaking = speech_rows(repeats)
        status.update("Lmk2Video: operations, steps, long videos")
        showing = video_rows(repeats)
        status.update("animating, training and annotating with a busy neighbour")
        disturbed = neighbour_rows(material, model, repeats)
    about = {
        "source": source.name,
        "frames": material.num_frames,
        "samples": len(material.samples),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "model": model.name,
        "libraries": library_versions(*_LIBRARIES),
    }
    return [
        *annotating,
        *engines,
        *decoding,
        *packing,
        *jobs,
        *reading,
        *training,
        *speaking,
        *showing,
        *disturbed,
    ], about


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; returns the exit status."""
    return run_command_line(bench, arguments, prog="python -m orchestration.bench")


if __name__ == "__main__":
    sys.exit(main())
