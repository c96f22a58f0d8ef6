"""The ingest job: a data set's own metadata becomes a catalog, and each of its clips a unit that cuts and crops it.

`run_ingest` reads the metadata, fingerprints the sources, plans a unit per catalog row whose source is there, and runs
them; `run` is what a worker does with one. Clips that are in a shard never change: a source that is gone leaves them as
they are, and one that has other content than was packed is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingest.catalog import write_catalog
from ingest.extent import UNKNOWN, Extent
from ingest.faces import Detector, FoundFace
from ingest.fingerprints import Fingerprint, has_changed, read_fingerprints
from ingest.settings import IngestSettings
from ingest.signatures import MovementSigner, Signature, sound_words
from orchestration import outcomes, plans
from orchestration.jobs import recovered
from orchestration.jobs.duplicates import Duplicates, about
from orchestration.jobs.ingest_inputs import Source, find_inputs, note_same_recordings
from orchestration.jobs.recovered import CONTENT, SETTINGS, SOUND_DELAY
from orchestration.jobs.removed import find_removed, nameless, rejected, removed_unit, strip_removed
from orchestration.overrides import settings_with
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX
from orchestration.sound_delays import NO_DELAYS, measured_delays
from orchestration.split_groups import SIGNATURE
from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.frame_reports import report_frames
from orchestration.units.output_tar import OutputTar
from orchestration.units.records import RejectedPiece, UnitRecord
from orchestration.units.unit import JobStoppedError, Output, Unit, packed_before
from shards.removal_records import REASON, RemovalList
from talkinghead.config import from_json
from talkinghead.face.model import FaceModel
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import CatalogRow, ClipInfo
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

# Both go into the provenance keys: a higher version, or another release of a library, means that units are done anew.
VERSION = 2
LIBRARIES = ("av", "decord2", "opencv-contrib-python", "numpy", "ai-edge-litert")
_LEAST_LIMIT_S = 600.0
_MOST_LIMIT_S = 30 * 86_400.0  # longer than anything takes, whatever an extent says
_UNKNOWN_S = 3600.0  # length that a source of which no length is known is taken for
_PIXELS = 1920 * 1080  # of the frames that the factors in `_time_limit` were measured with
_FIRST_PASS = 0.25  # share of the first pass in a unit's time, about


# --- the whole job ----------------------------------------------------------------------------------------------------


def run_ingest(runner: UnitRunner, source: Source, overrides: Sequence[str], model: FaceModel) -> Tally:
    """Read the metadata, fingerprint the sources, cut and crop every clip.

    Args:
        runner: Runs the units, on its DATA.
        source: Data set and folder to ingest.
        overrides: `IngestSettings` as NAME=VALUE; the others stay as the data set was ingested before.
        model: Face model; its detector finds the faces.

    Returns:
        Counts of the units done before and now.

    Raises:
        ValueError: The source or a setting does not exist, the source of a packed clip has changed, or DATA holds clips
            of another size.
        JobStoppedError: The machine is at fault.
    """
    if source.source is None:
        raise ValueError("SOURCE is missing: the folder with the videos")
    storage, folder, name = runner.storage, Path(source.source).absolute(), plans.ingest_plan_name(source.dataset)

    # Settings: what the user names, else what the data set was ingested with before.
    before = _plan_before(storage, source.dataset)
    settings = settings_with(IngestSettings, before.settings, overrides)
    results = outcomes.ingest_results(storage)
    packed = outcomes.packed_clips(storage, results)
    _check_size(storage, name, packed.keys, settings)

    # The inputs: the catalog, and the content of every source it names.
    inputs = find_inputs(storage, source, folder, packed.keys, before.contents, before.group_by)
    catalog, contents = inputs.catalog, inputs.contents

    # Each content once, over all data sets of DATA.
    duplicates = Duplicates.find(storage, source.dataset, inputs.to_compare(before.contents), packed.keys)
    removed = find_removed(RemovalList(storage), inputs.rows, contents)
    single = [row for row in inputs.rows if row.key not in duplicates.kept and row.key not in removed]
    doubled = [row for row in inputs.rows if row.key in duplicates.kept and row.key not in removed]
    catalog = replace(catalog, rows=[nameless(row) if row.key in removed else row for row in catalog.rows])

    # The plan: a unit per clip, packed ones as they were made. Catalog and plan are written before anything runs.
    place = {"source": str(folder), "follow_links": source.follow_links}
    delays = _sound_delays(storage, source.align_sound, before, contents, packed.keys)
    limit_s = runner.retry.time_limit_s
    units = plan_ingest(single, inputs.prints, place, settings, model.detector_sha256, limit_s, delays)
    units += [duplicates.unit(row, contents[row.key]) for row in doubled]
    units += [removed_unit(row) for row in removed.values() if row.source is not None]
    units = [_as_before(unit, results.get(unit.key)) for unit in _keep_packed(before, units, contents, packed)]
    write_catalog(storage, catalog)
    # Units whose source is gone can no longer be run, but still count.
    plan = plans.IngestPlan(
        units=plans.pairs(units) | {key: before.units[key] for key in inputs.gone},
        contents=contents | {key: before.contents.get(key) for key in inputs.gone},
        settings=asdict(settings),
        group_by=catalog.group_by,
        sound_delays=delays,
    )
    plans.write_plan(storage, name, plan)
    missing = len(catalog.rows) - len(units) - len(inputs.gone)
    log.info("%s: %d clips in the catalog, %d without a source file", source.dataset, len(catalog.rows), missing)
    if not units and not inputs.gone:
        get = f"get them with make download DATASET={source.dataset} SOURCE={folder}"
        log.warning("no clip has its video in %s: name the folder with the videos, or %s", folder, get)
    log.info(
        "%d of the listed clips are there, %d of them as released clips; %d are duplicates",
        catalog.there, catalog.released, len(doubled),
    )  # fmt: skip

    # Cut and crop. Then it is known which clips show the same recording.
    tally = runner.run(INGEST_JOB, [*units, *duplicates.settle_others(storage)])
    strip_removed(storage)
    note_same_recordings(storage, catalog)
    return tally


def _plan_before(storage: Storage, dataset: str) -> plans.IngestPlan:
    """Plan of the command before; where it is damaged or gone, what the records of packed clips say of it."""
    name = plans.ingest_plan_name(dataset)
    plans.set_aside_damaged(storage, name)
    if (plan := plans.find_ingest(storage, dataset)) is None:
        plan = recovered.ingest_plan(storage, dataset, read_fingerprints(storage, dataset))
        if plan.units:
            plans.write_plan(storage, name, plan)
    return plan


def _sound_delays(
    storage: Storage,
    data: str | None,
    before: plans.IngestPlan,
    contents: Mapping[str, str | None],
    packed: set[str],
) -> dict[str, int]:
    """SHA-256 of a source → frames by which its sound is moved: as measured in another data set, or as before."""
    found = {} if data == NO_DELAYS else before.sound_delays
    if data not in (None, NO_DELAYS):
        other = Storage(data)
        if other.uri == storage.uri:
            raise ValueError(
                f"--align-sound {data} is the data set that is written, whose packed clips never change: ingest the"
                " files into another DATA"
            )
        found = measured_delays(other)
        log.info("%s: a clear delay of the sound in %d sources", other.uri, len(found))
    # Packed clips stay as they were made.
    fixed = {content for key, content in before.contents.items() if key in packed and content is not None}
    known = {content for content in contents.values() if content is not None}
    return {content: delay for content, delay in found.items() if content in known - fixed} | {
        content: delay for content, delay in before.sound_delays.items() if content in fixed
    }


def _check_size(storage: Storage, name: str, packed: set[str], settings: IngestSettings) -> None:
    """Raise `ValueError` unless all clips of DATA have one size: training stacks them into batches."""
    # The size of this data set may still change while none of its clips is packed.
    others = [other for other in plans.plan_names(storage, INGEST_PLAN_PREFIX) if other != name or packed]
    known = (plans.find_ingest(storage, other.removeprefix(INGEST_PLAN_PREFIX)) for other in others)
    sizes = {settings_with(IngestSettings, plan.settings, ()).size for plan in known if plan}
    if other := sizes - {settings.size}:
        raise ValueError(
            f"DATA holds clips of size {other.pop()}, not {settings.size}: use a new DATA for another size"
        )


def _keep_packed(
    before: plans.IngestPlan, units: Sequence[Unit], contents: Mapping[str, str | None], packed: plans.PackedUnits
) -> list[Unit]:
    """Units of which those of packed clips stay as they were ingested, also under newer libraries or settings.

    Raises:
        ValueError: The source of a packed clip has other content, or cannot be read.
    """
    # Packed clips whose provenance key would change. That is fine for settings and libraries, but not for content.
    old = before.units
    frozen = [unit for unit in units if unit.key in packed.keys and old.get(unit.key, unit.pkey) != unit.pkey]
    for unit in frozen:
        if contents[unit.key] is None:
            raise ValueError(f"{unit.source} is packed, but cannot be read any more: give it back, or move it away")
        if before.contents.get(unit.key, contents[unit.key]) != contents[unit.key]:
            raise ValueError(
                f"{unit.source} has changed since its clip was packed. Shards are immutable: "
                "give the new file another name, or use a new DATA folder"
            )
    if frozen:
        log.warning(
            "%d packed clips were ingested with other settings, metadata or libraries and stay as they are", len(frozen)
        )
    return plans.keep_packed(units, old, packed)


def _as_before(unit: Unit, record: outcomes.UnitState) -> Unit:
    """A unit that, where it is packed and must be done again, is done with the settings that it was done with."""
    if not unit.is_packed or unit.is_freed or not isinstance(record, UnitRecord) or record.pkey != unit.pkey:
        return unit
    settings, delay = record.details.get(SETTINGS), record.details.get(SOUND_DELAY, 0)
    if SETTINGS not in unit.payload or not isinstance(settings, dict) or type(delay) is not int:
        return unit  # a duplicate, or the record of an earlier release
    payload = {name: value for name, value in unit.payload.items() if name != SOUND_DELAY}
    return replace(unit, payload=payload | {SETTINGS: settings} | ({SOUND_DELAY: delay} if delay else {}))


# --- its units --------------------------------------------------------------------------------------------------------


def plan_ingest(
    rows: Sequence[CatalogRow],
    fingerprints: Mapping[str, Fingerprint],
    place: Mapping[str, Any],
    settings: IngestSettings,
    detector: str,
    time_limit_s: float | None,
    sound_delays: Mapping[str, int] | None = None,
) -> list[Unit]:
    """Plan one unit per row that has a source, in key order.

    Args:
        rows: Rows of the catalog.
        fingerprints: Source → size, time and content hash.
        place: Path of SOURCE (`source`), the same on every node, and whether its links may lead out (`follow_links`).
        settings: Parameters of the job.
        detector: SHA-256 of the face detector.
        time_limit_s: Wall-clock limit of a unit in seconds; None: from its clip and its source.
        sound_delays: SHA-256 of a source → frames by which its sound is late; others have none.
    """
    libraries = library_versions(*LIBRARIES)
    units = []
    for row in sorted(rows, key=lambda row: row.key):
        if row.source is None:
            continue
        # A row's metadata is part of the input: a clip with other times or another person is done anew.
        content = fingerprints[row.source]
        delay = (sound_delays or {}).get(content.sha256 or "", 0)
        moved = {"sound_delay": delay} if delay else {}
        pkey = provenance_key(
            INGEST_JOB,
            VERSION,
            parameters=settings,
            inputs={"row": row, "content": content.sha256 or "unreadable"} | moved,
            models={"detector": detector},
            libraries=libraries,
        )
        units.append(
            Unit(
                job=INGEST_JOB,
                key=row.key,
                pkey=pkey,
                function="orchestration.jobs.ingest:run",
                payload={
                    "row": row.to_json(),
                    **place,
                    "fingerprint": asdict(replace(content, extent=None)),
                    "settings": asdict(settings),
                    "detector_sha256": detector,
                }
                | moved,
                source=row.source,
                time_limit_s=time_limit_s or _time_limit(row, content),
                frames=round(_seconds(row, content.extent or UNKNOWN) * FPS),
            )
        )
    return units


def _seconds(row: CatalogRow, extent: Extent) -> float:
    """Length of a clip in seconds, as far as row or source tell it; else 0."""
    if row.end_s is not None:
        return max(0.0, row.end_s - (row.start_s or 0.0))
    whole = extent.frames / row.frame_fps if row.frame_fps else extent.seconds
    return max(0.0, whole - (row.start_s or 0.0))


def _time_limit(row: CatalogRow, content: Fingerprint) -> float:
    """Default wall-clock limit of a clip's unit in seconds, many times what it takes on a slow core.

    Ten times real time for frames of 1080p at 25 fps, and more for larger or more frames; twice real time for what may
    have to be decoded before the clip; and the time to read the file some times over a slow mount.
    """
    extent = content.extent or UNKNOWN
    seconds = _seconds(row, extent) or _UNKNOWN_S
    load = max(1.0, extent.width * extent.height / _PIXELS) * max(1.0, (row.frame_fps or extent.fps) / FPS)
    limit = _LEAST_LIMIT_S + load * (10.0 * seconds + 2.0 * (row.start_s or 0.0)) + (content.size or 0) / 5e6
    return min(limit, _MOST_LIMIT_S)


# --- in a worker ------------------------------------------------------------------------------------------------------


class SourceChangedError(Exception):
    """The source has changed since it was fingerprinted: what was made of it must not count for the old content."""


def run(storage: Storage, unit: Unit) -> Output:
    """Cut and crop one clip of the catalog.

    Raises:
        JobStoppedError: The command has read the source, and this machine cannot.
        Exception: Whatever is wrong with the source.
    """
    try:
        return _cut(storage, unit)
    except (UnreadableMediaError, FileNotFoundError, PermissionError) as error:
        if lost := _lost_here(unit):
            raise JobStoppedError(lost) from error
        raise


def _lost_here(unit: Unit) -> str:
    """What keeps this machine from a source that the command has read; empty: it is there, or never could be read."""
    folder, known = Path(unit.payload["source"]), Fingerprint(**unit.payload["fingerprint"])
    if known.sha256 is None:
        return ""
    path = folder / known.path
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is not there, but was when its clips were planned: every machine must have SOURCE at this path"
    except PermissionError:
        return f"{path} may not be read by this user here, but could be when its clips were planned"
    return ""


def _cut(storage: Storage, unit: Unit) -> Output:
    """Samples and rejected pieces of one clip of the catalog."""
    from ingest.clip import ingest_clip
    from ingest.source_files import locate
    from orchestration.jobs.worker import pin_threads, planned_detector
    from talkinghead.media.audio import decode_wav

    # From the payload: the catalog row, the settings, and the detector that the plan was made with.
    pin_threads()
    row = CatalogRow.from_json(unit.payload["row"])
    assert row.source is not None
    settings = from_json(IngestSettings, unit.payload["settings"])
    detector = planned_detector(unit.payload["detector_sha256"])
    folder, known = Path(unit.payload["source"]), Fingerprint(**unit.payload["fingerprint"])
    # Where the source really lies: since the catalog was made, it may have become a link out of SOURCE.
    follow = unit.payload["follow_links"]
    path = locate(folder, row.source, follow_links=follow)
    # Cut and crop; each piece goes to the disk at once, as a sample or with its reason. The source is checked before
    # anything of that counts: a file that was still being written may have changed meanwhile.
    watched = _WatchedDetector(detector, settings.detect_every)
    notes: dict[str, list[str]] = {}
    sounds: dict[str, np.ndarray] = {}
    removed = RemovalList(storage)
    same_as = packed_before(storage, unit)
    with OutputTar(storage, unit.job, unit.key, unit.pkey, same_as=same_as) as tar:
        inside, delay = None if follow else folder, unit.payload.get("sound_delay", 0)
        for piece in ingest_clip(row, path, settings, watched, unit.pkey, inside=inside, sound_delay=delay):
            if piece.contents is not None and _is_removed(removed, known.sha256, piece.key, piece.contents["json"]):
                # It was taken out of DATA: nothing of it is stored again, nor said.
                tar.leave_out(piece.key, piece.contents)
                tar.rejected.append(rejected(piece.key))
                watched.count_piece(piece.num_frames)
                continue
            if piece.contents is not None:
                tar.add(piece.key, piece.num_frames, piece.contents)
                sounds[piece.key] = sound_words(decode_wav(piece.contents["wav"]))
            elif piece.rejection is not None:
                tar.rejected.append(RejectedPiece(key=piece.key, rejection=piece.rejection))
            if piece.notes:
                notes[piece.key] = list(piece.notes)
            watched.count_piece(piece.num_frames)
        if known.sha256 is not None and has_changed(folder, known, follow_links=follow):
            raise SourceChangedError(
                f"{folder / row.source} changed while it was ingested: run again when it is complete"
            )
    record = tar.record()
    if not record.samples and any(piece.rejection.reason == REASON for piece in record.rejected):
        return Output(stored=record)  # all of it was removed
    signature = Signature(step_frames=settings.detect_every, movement=watched.movement.words, sounds=sounds)
    details = about(row) | {SIGNATURE: signature.to_json()} | ({outcomes.NOTES: notes} if notes else {})
    # Of what and how it was made: by these it can be made again, whatever the plan says by then.
    details |= {CONTENT: known.sha256} if known.sha256 is not None else {}
    details |= {SETTINGS: unit.payload["settings"]} | ({SOUND_DELAY: delay} if delay else {})
    return Output(stored=record, details=details)


def _is_removed(removed: RemovalList, content: str | None, key: str, info: bytes) -> bool:
    """Whether a piece, of which this is the json, was taken out of DATA."""
    if not removed.has_pieces:
        return False
    about = ClipInfo.from_json(info)
    return removed.has_piece(key, content, (about.start_s, about.end_s))


class _WatchedDetector:
    """The face detector, by whose calls the progress of the first pass over a clip is known, and what moves in it.

    What is reported goes from 0 to the clip's length; the second pass, which encodes, counts for the most of it.
    """

    def __init__(self, detector: Detector, every: int) -> None:
        self._detector, self._every = detector, every
        self._frames = 0.0
        self._seen: np.ndarray | None = None
        self.movement = MovementSigner()

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> Sequence[FoundFace]:
        """Faces in an image; see `FaceDetector.detect`."""
        # Small faces are searched for in whole frames only: one in so many is looked at.
        if small_faces and not self._is_turned(frame):
            self._count(_FIRST_PASS * self._every)
            self.movement.add(frame)
            self._seen = frame
        return self._detector.detect(frame, small_faces=small_faces)

    def _is_turned(self, frame: np.ndarray) -> bool:
        """Whether this is the last frame once more, turned by 180° (`upside_down`)."""
        return self._seen is not None and np.array_equal(frame[::-1, ::-1], self._seen)

    def count_piece(self, num_frames: int) -> None:
        """Count a piece that the second pass has ended."""
        self._count((1 - _FIRST_PASS) * num_frames)

    def _count(self, frames: float) -> None:
        self._frames += frames
        report_frames(int(self._frames))
