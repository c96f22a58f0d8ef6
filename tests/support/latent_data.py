"""A small data set for the latents job, and a runner that needs no Ray: the same units, one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from annotate.columns import COLUMNS
from annotate.latents import LatentSettings
from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs.derive import run_derive
from orchestration.units.executor import RetrySettings, Tally, UnitRunner
from orchestration.units.ledger import Ledger
from orchestration.units.lost import lost_outputs, refuse_changed
from orchestration.units.retry import quarantine
from orchestration.units.segment import Segment, SegmentTar, commit_segment, grouped
from orchestration.units.segment_records import SegmentRow
from orchestration.units.sweep import sweep
from orchestration.units.unit import CHANGED, JobStoppedError, Unit, compute, failed_attempt, run_unit
from talkinghead.annotation import blank_arrays
from talkinghead.files.storage import Storage
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

LENGTHS = (5, 9, 6, 30, 7)
SETTINGS = LatentSettings(vae="tiny", image_encoder="tiny", width=32, height=32, device="cpu")


def clip_key(number: int) -> str:
    return f"folder-clip_{number}-{number:06x}"


def clip_frames(number: int) -> np.ndarray:
    """Images `[F, 64, 64, 3]` of a coloured square that moves over a slope."""
    frames = np.zeros((LENGTHS[number], 64, 64, 3), np.uint8)
    frames[...] = np.arange(64, dtype=np.uint8)[:, None] * 3
    for position, frame in enumerate(frames):
        frame[10:30, position : position + 20] = (40 * number, 120, 250 - 40 * number)
    return frames


def build(root: Path, poison: Sequence[int] = ()) -> Storage:
    """A data set of two shards; the videos of clips in `poison` are no videos."""
    clips = []
    for number, length in enumerate(LENGTHS):
        audio = np.zeros(length * 640, np.float32)
        media = media_members(
            clip_key(number), clip_frames(number), audio, source_id=f"c{number}", group=f"group-{number}"
        )
        if number in poison:
            media["mp4"] = b"no video" * 100
        clips.append(
            PackedClip(
                key=clip_key(number),
                num_frames=length,
                media=media,
                annotation=annotation_members(clip_key(number), blank_arrays(length)),
                split="val" if number == 4 else "train",
                split_group=f"group-{number}",
                reason="no_face" if number == 2 else None,
            )
        )
    return pack_data(root, clips, min_shards=2)


class InProcessUnitRunner(UnitRunner):
    """Runs units and segments here, one after the other, as the executor does; a failure is quarantined at once."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run what is pending or lost."""
        del gpu_share
        started = time.perf_counter()
        ledger = Ledger(self.storage, job)
        lost = lost_outputs(ledger, units)
        pending = [
            replace(unit, segment=ledger.segment_of((unit.key, unit.pkey))) if unit.key in lost else unit
            for unit in units
            if unit.key in lost or not ledger.is_done(unit)
        ]
        tally = Tally(planned=len(units), done_before=len(units) - len(pending))
        changed = []
        for unit in grouped(pending, ledger.segments):
            if isinstance(unit, Segment):
                self._run_segment(unit, tally)
                continue
            try:
                tally.frames += run_unit(self.storage, unit, attempts=1).frames
                tally.committed += 1
            except JobStoppedError:
                raise
            except Exception as error:  # noqa: BLE001  as the executor does
                attempt = failed_attempt(error, alone=False, seconds=0.0)
                if attempt.cause == CHANGED:
                    changed.append(attempt.message)
                    continue
                quarantine(self.storage, unit, [attempt])
                tally.quarantined += 1
        refuse_changed(changed)
        sweep(self.storage, job)
        tally.wall_seconds = time.perf_counter() - started
        return tally

    def _run_segment(self, segment: Segment, tally: Tally) -> None:
        def make(scratch: Path, path: str) -> tuple[list[SegmentRow], int]:
            rows = []
            with SegmentTar(self.storage, scratch, path) as tar:
                for unit in segment.units:
                    try:
                        rows.append(SegmentRow.of(tar.add(unit, compute(self.storage, unit))))
                    except JobStoppedError:
                        raise
                    except Exception as error:  # noqa: BLE001  as the executor does
                        last = quarantine(self.storage, unit, [failed_attempt(error, alone=False, seconds=0.0)])
                        row = SegmentRow(key=unit.key, pkey=unit.pkey, outcome="quarantined", reason=last.cause)
                        rows.append(row)
                return rows, tar.end

        rows = commit_segment(self.storage, segment, make).rows
        tally.frames += sum(row.record.frames for row in rows if row.record)
        tally.quarantined += sum(row.outcome == "quarantined" for row in rows)
        tally.committed += sum(row.outcome != "quarantined" for row in rows)


class UnitByUnitRunner(InProcessUnitRunner):
    """Commits every unit on its own, as releases before segments did."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run what is pending or lost."""
        return super().run(job, [replace(unit, segment="") for unit in units], gpu_share=gpu_share)


def unit_by_unit(data: Storage | Path) -> UnitRunner:
    """Runner of earlier releases."""
    storage = data if isinstance(data, Storage) else Storage(data)
    return UnitByUnitRunner(storage=storage, cluster=Cluster(ClusterSettings()), retry=RetrySettings())


def in_process(data: Storage | Path) -> UnitRunner:
    storage = data if isinstance(data, Storage) else Storage(data)
    return InProcessUnitRunner(storage=storage, cluster=Cluster(ClusterSettings()), retry=RetrySettings())


def make_latents(runner: UnitRunner, settings: LatentSettings = SETTINGS, version: str | None = None) -> str:
    """Make the derived column `latents`; returns its version."""
    return run_derive(runner, COLUMNS["latents"], settings, version=version)


def make_version_1(runner: UnitRunner, settings: LatentSettings = SETTINGS) -> str:
    """Make latents as releases before version 2 did; returns the version."""
    column = COLUMNS["latents"].of_version(1)
    assert column is not None
    return run_derive(runner, column, settings)
