"""Row about the way from video to annotation, against Ray Data's own video reader, which only decodes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from orchestration.bench.annotate_rows import WORKERS
from orchestration.bench.material import Material
from orchestration.bench.row import Row
from talkinghead.runtime.ray_cluster import ray_cluster

_OBJECT_STORE_BYTES = 1 << 30


def ray_rows(material: Material, ours: float, scratch: Path, repeats: int) -> list[Row]:
    """Measure Ray Data on the clips of the material.

    Args:
        material: Clips to decode.
        ours: Our speed on the same clips from clip to annotation, with as many workers, in frames per second.
        scratch: Empty folder for the clips as files.
        repeats: Number of rounds.
    """
    paths = []
    for sample in material.chosen:
        paths.append(scratch / f"{sample.key}.mp4")
        paths[-1].write_bytes(material.member(sample, "mp4"))
    return [
        Row(
            name="video_to_annotation",
            ours=ours,
            baseline=_read_videos_speed([str(path) for path in paths], material.num_frames, repeats),
            unit="frames/s",
            better="higher",
            goal=4.0,
            note=f"{WORKERS} workers from clip to committed annotation; against ray.data.read_videos(…).iter_batches()"
            f" on the same clips with {WORKERS} CPUs, which only decodes; the start of either is left out",
        )
    ]


def _read_videos_speed(paths: list[str], num_frames: int, repeats: int) -> float:
    """Median speed of `ray.data.read_videos` in frames per second."""
    # Ray Data puts every decoded frame into the object store, which ours keeps small.
    with ray_cluster(None, WORKERS, object_store_bytes=_OBJECT_STORE_BYTES):
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        _count_frames(paths[:1])  # starts the workers
        walls = []
        for _ in range(repeats):
            started = time.perf_counter()
            found = _count_frames(paths)
            walls.append(time.perf_counter() - started)
            assert found == num_frames, f"read_videos gave {found} of {num_frames} frames"
        return num_frames / statistics.median(walls)


def _count_frames(paths: list[str]) -> int:
    """Decode all videos; returns the number of frames."""
    import ray

    return sum(len(batch["frame"]) for batch in ray.data.read_videos(paths).iter_batches())
