"""Rows about annotating, against the original way (PNG frames, image mode, files per frame) and MediaPipe alone."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from annotate.clip import annotate_clip, encode_annotation
from annotate.engines import make_engine
from annotate.settings import AnnotateSettings
from orchestration.bench.material import Material
from orchestration.bench.mediapipe_loops import image_loop, video_loop, write_images
from orchestration.bench.row import Row
from orchestration.bench.timing import Cost, in_turns, measure, one_core
from orchestration.jobs.annotate import plan_annotate
from orchestration.jobs.worker import pin_threads
from orchestration.units.unit import Unit, run_unit
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.files.storage import Storage
from talkinghead.geometry.canonical import canonical_face
from talkinghead.media.clip import decode_clip

WORKERS = 2
PASSES = 3
"""Times that the workers annotate every clip in one round."""


def annotate_rows(material: Material, model: FaceModel, scratch: Path, repeats: int) -> tuple[list[Row], float]:
    """Measure both engines and the baselines.

    Args:
        material: Clips to annotate.
        model: Face model, with MediaPipe's bundle; the fallback model leaves the rows without baselines.
        scratch: Empty folder for frames and for the baseline's files.
        repeats: Number of rounds.

    Returns:
        The rows, and our speed with two workers in frames per second.
    """
    # Ours, once as the whole job and once on frames in memory, like the video loop.
    pin_threads()
    frames = {sample.key: list(decode_clip(material.member(sample, "mp4"))) for sample in material.chosen}
    engines = ("litert", "tasks") if model.task_file else ("litert",)
    competitors: dict[str, Callable[[int], None]] = {engine: _annotator(material, model, engine) for engine in engines}
    competitors |= {f"{engine} in memory": _memory_annotator(frames, model, engine) for engine in engines}
    # The baselines open MediaPipe's own bundle.
    if model.task_file:
        images = write_images(frames, scratch / "frames")
        competitors["images"] = lambda turn: image_loop(model, images, scratch / f"features{turn}")
        competitors["video"] = lambda _: video_loop(model, list(frames.values()))
    # On one core CPU time is comparable: no thread waits actively for another.
    with one_core():
        costs = in_turns(competitors, repeats)
    speed = _speed_of_workers(material, model, repeats)
    return _rows(costs, material.num_frames, speed), speed


def _rows(costs: dict[str, Cost], num_frames: int, speed: float) -> list[Row]:
    """The rows from the costs of the competitors, by their names, and the speed of the workers."""
    default = AnnotateSettings().engine
    missing = " No baseline: the fallback model has no bundle for MediaPipe Tasks to open."
    work = "decode, landmarks, mesh, pose, blendshapes, quality, and the commit of the result"

    def cpu_ms(name: str) -> float | None:
        return costs[name].cpu / num_frames * 1000 if name in costs else None

    def per_second(name: str) -> float | None:
        return num_frames / costs[name].cpu if name in costs else None

    ours = cpu_ms(default)
    assert ours is not None
    original = "one process, one core: cv2.imread of PNGs, Tasks IMAGE mode, four .npy files a frame"
    rows = [
        Row(
            name="annotate_cpu",
            ours=ours,
            baseline=cpu_ms("images"),
            unit="CPU-ms/frame",
            better="lower",
            goal=0.6,
            note=f"{default} engine, one core: {work}; against {original} (its mesh without the metric fit)."
            + ("" if "images" in costs else missing),
        ),
        Row(
            name="annotate_wall_2_workers",
            ours=speed,
            baseline=num_frames / costs["images"].wall if "images" in costs else None,
            unit="frames/s",
            better="higher",
            goal=2.5,
            note=f"{default} engine in {WORKERS} warm processes; against {original}."
            + ("" if "images" in costs else missing),
        ),
    ]
    # Each engine, without and with the rest of the job, against nothing but MediaPipe's own calls.
    columns = "landmarks, mesh, pose, blendshapes, quality"
    for engine, goal in (("litert", 1.0), ("tasks", 0.9)):
        for name, competitor, note in (
            (f"annotate_{engine}_vs_video_loop", f"{engine} in memory", f"{columns}, encoded, of frames in memory"),
            (f"annotate_{engine}_job_vs_video_loop", engine, f"the whole job: {work}"),
        ):
            if (mine := per_second(competitor)) is not None:
                rows.append(
                    Row(
                        name=name,
                        ours=mine,
                        baseline=per_second("video"),
                        unit="frames/CPU-s",
                        better="higher",
                        goal=goal,
                        note=f"{engine} engine, {note}; against detect_for_video alone, with blendshapes and matrices,"
                        " of frames in memory." + ("" if "video" in costs else missing),
                    )
                )
    return rows


def _units(material: Material, model: FaceModel, engine: str, version: str) -> list[Unit]:
    settings = replace(AnnotateSettings(), engine=engine)
    return plan_annotate(material.chosen, f"bench-{version}", settings, model, None)


# In each round under another version, so that no round finds its units done.
def _annotator(material: Material, model: FaceModel, engine: str) -> Callable[[int], None]:
    def annotate(turn: int) -> None:
        for unit in _units(material, model, engine, f"{engine}{turn}"):
            run_unit(material.storage, unit, attempts=1)

    return annotate


def _memory_annotator(
    frames: Mapping[str, Sequence[np.ndarray]], model: FaceModel, engine: str
) -> Callable[[int], None]:
    """Function that annotates decoded clips and encodes the columns: the job without decoding, and without the disk."""
    settings = replace(AnnotateSettings(), engine=engine)
    landmarks, detector = make_engine(engine, model), FaceDetector(model)
    face = canonical_face(model.geometry_metadata)
    info = {"annotate_key": "bench", "engine": engine, "model": model.name, "model_sha256": model.sha256}

    def annotate(_: int) -> None:
        for clip in frames.values():
            encode_annotation(annotate_clip(clip, landmarks, detector, face, settings), info)

    return annotate


def _speed_of_workers(material: Material, model: FaceModel, repeats: int) -> float:
    """Speed of `WORKERS` processes in frames per second.

    Every clip is annotated `PASSES` times, so that the last one does not keep a single process busy for long.
    """
    with warm_workers(material, model) as annotate:
        walls = [measure(lambda: annotate(PASSES)).wall for _ in range(repeats)]
    return PASSES * material.num_frames / statistics.median(walls)


@contextlib.contextmanager
def warm_workers(material: Material, model: FaceModel) -> Iterator[Callable[[int], None]]:
    """Start `WORKERS` processes and let them load everything, like Ray's after their first units.

    Yields:
        Function that lets them annotate every clip so many times.
    """
    engine = AnnotateSettings().engine
    versions = itertools.count()
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:

        def annotate(passes: int) -> None:
            units = [u for _ in range(passes) for u in _units(material, model, engine, f"pool{next(versions)}")]
            # The longest first, so that no process is left with one at the end.
            units.sort(key=lambda unit: -unit.payload["num_frames"])
            list(pool.map(_run, [material.storage.uri] * len(units), [unit.to_json() for unit in units]))

        annotate(1)
        yield annotate


def _run(uri: str, unit: str) -> None:
    run_unit(Storage(uri), Unit.from_json(unit), attempts=1)
