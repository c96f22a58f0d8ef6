"""`infer evaluate --pair`: one table over pairs of a driver and a renderer, on the same held-out clips.

The phases:

    1. pairs      what the user named; a pair that does not fit is refused before weights are read
    2. clips      the split's clips with a face, and with sound where a driver attends to it
    3. takes      every subject shows every clip once per seed, and is measured; scores are kept as they come, so that
                  an evaluation that was stopped goes on, and a clip that fails costs its own numbers
    4. table      means, intervals, noise floors and differences, as JSON, text and a page

One clip with one take is in memory at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from infer.evaluation.clip_scores import metric_kinds
from infer.evaluation.evaluate_request import EvaluateRequest
from infer.evaluation.held_out_clip import COLUMNS
from infer.evaluation.pair_choice import PairChoice, RenderSettings, parse_pairs
from infer.evaluation.pair_page import write_page
from infer.evaluation.pair_session import LIBRARIES, PairSession
from infer.evaluation.pair_table import PairTable
from infer.evaluation.score_folder import ScoreFolder
from infer.evaluation.training_mean import mean_expression
from infer.evaluation.training_record import training_notes
from infer.metrics.face_reading import face_engine
from infer.metrics.learned_metrics import LearnedModels
from infer.metrics.scripted_model import ScriptLimits
from infer.output_files import place_name, settings_of
from infer.weights.kept import weights_kept
from shards.manifest import read_manifest
from shards.reader import Sample, ShardReader
from shards.selection import Selection
from shards.speech_choice import with_speech
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable, write_whole
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions, pretty_json
from talkinghead.runtime.command_line import Incomplete
from talkinghead.runtime.progress import Progress

JSON_FILE, TABLE_FILE, PAGE_FILE = "evaluation.json", "evaluation.txt", "index.html"
SCORES = "scores"
"""Folder of the scores, a file for each subject and clip."""
_ANY_SIZE = (256, 256)  # pixels, where no renderer was made for a size


def evaluate_pairs(request: EvaluateRequest) -> str | Incomplete:
    """Evaluate pairs, and write the results into the request's folder.

    Returns:
        Path of the page; as `Incomplete` where a clip could not be measured for a subject.

    Raises:
        ValueError: The request cannot be met.
        OSError: There is no data set, or a failure of the machine, which ends the evaluation: it goes on when the
            command is given again.
    """
    assert request.output is not None, "checked before"
    # 1. Pairs.
    choices = parse_pairs(request.pair, request.weights)
    settings = RenderSettings(
        size=_size(request, choices), steps=request.steps, guidance=request.guidance, device=request.device
    )
    conversions = {choice.label: [str(step) for step in choice.check(settings).conversions] for choice in choices}
    for name in (JSON_FILE, TABLE_FILE, PAGE_FILE):
        check_writable(request.output / name)

    # 2. Clips.
    storage = Storage(request.data)
    speaks = any(choice.speaks for choice in choices)
    samples, index, there = _samples(storage, request, speaks=speaks)
    offset, where = mean_expression(storage, request.version)
    notes = [*_left_out(len(samples), there, speaks=speaks), where, *_notes(request, choices, samples)]

    # 3. Takes.
    models = LearnedModels(
        identity=request.identity_model,
        sync=request.sync_model,
        limits=ScriptLimits(memory=request.metric_memory, seconds=request.metric_seconds),
    )
    model = resolve_face_model()
    with (
        models.loaded() as networks,
        weights_kept(),
        Progress() as progress,
        tempfile.TemporaryDirectory(prefix="talkinghead-evaluate-") as scratch,
    ):
        session = PairSession(
            request=request,
            samples=samples,
            index=index,
            settings=settings,
            model=model,
            engine=face_engine(),
            networks=networks,
            scratch=Path(scratch),
            folder=ScoreFolder(request.output / SCORES),
            progress=progress,
        )
        subjects = session.subjects(choices, offset)
        measured = session.measure(subjects, offset)
        notes += [network.provenance() for network in networks.values()]

    # 4. Table.
    people = len({sample.speaker for sample in samples})
    table = PairTable(
        title=f"The split {request.split} of {place_name(Path(request.data))}: {_some(len(samples), 'clip')} of"
        f" {_some(people, 'person or source', 'persons or sources')}",
        protocol=_protocol(request, settings),
        notes=tuple(notes),
        metrics=tuple(metric_kinds(tuple(networks)).values()),
        clips=tuple(session.facts()),
        subjects=tuple(measured),
        resamples=request.resamples,
        record={
            "settings": settings_of(request),
            "size": list(settings.size),
            "seeds": list(request.seeds),
            "index": index,
            "conversions": conversions,
            "device": session.device,
            "face_model": model.sha256,
            "libraries": library_versions(*LIBRARIES),
        },
    )
    write_whole(request.output / JSON_FILE, pretty_json(table.to_json()))
    write_whole(request.output / TABLE_FILE, table.text().encode())
    write_page(request.output / PAGE_FILE, table, session.folder)
    page = str(request.output / PAGE_FILE)
    if not table.num_failures:
        return page
    subject = next(subject for subject in measured if subject.failures)
    key, reason = next(iter(subject.failures.items()))
    return Incomplete(page, f"{table.num_failures} takes failed, and their clips do not count there: {key}: {reason}")


def _size(request: EvaluateRequest, choices: Sequence[PairChoice]) -> tuple[int, int]:
    """Width and height of all frames in pixels: as the user says, else what the renderers were made for.

    Raises:
        ValueError: The renderers were made for different sizes, or one side alone is given.
    """
    if request.width and request.height:
        return request.width, request.height
    if request.width or request.height:
        raise ValueError("pairs are measured at one size: give both --width and --height")
    sizes = {choice.label: size for choice in choices if (size := choice.trained_size) is not None}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{label} {width}x{height}" for label, (width, height) in sizes.items())
        raise ValueError(f"the renderers were made for different sizes ({told}): give --width and --height for all")
    return next(iter(sizes.values()), _ANY_SIZE)


def _samples(storage: Storage, request: EvaluateRequest, *, speaks: bool) -> tuple[list[Sample], str, int]:
    """Clips of the split, those with sound where a driver attends to it; the name of the annotation's index; and how
    many clips there are without `--limit`."""
    manifest = read_manifest(storage)
    choice = with_speech(Selection(), manifest).arguments() if speaks else {}
    reader = ShardReader(storage, version=request.version, split=request.split, columns=COLUMNS, **choice)
    count = min(len(reader), request.limit or len(reader))
    if not count:
        with_sound = " and speech" if speaks else ""
        raise ValueError(f"the split {request.split!r} of {request.data} has no clip with a face{with_sound}")
    return [reader[number] for number in range(count)], manifest.annotation(reader.version).index, len(reader)


def _left_out(measured: int, there: int, *, speaks: bool) -> list[str]:
    """Which clips of the split were not to be measured."""
    notes = []
    if speaks:
        notes.append(
            "A driver may attend to sound: clips without, or where that is known without speech, are left out."
        )
    if measured < there:
        notes.append(
            f"These are the first {measured} of {there} clips of the split (--limit), not drawn from all of them."
        )
    return notes


def _some(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _protocol(request: EvaluateRequest, settings: RenderSettings) -> str:
    frames = "all frames" if request.frames is None else f"up to {request.frames} frames near its middle"
    return (
        f"Each clip's frame farthest from the measured ones is the portrait; {frames} are shown by every subject as"
        f" infer animate would, at {settings.size[0]}x{settings.size[1]} pixels and 25 frames per second"
        f" ({settings.steps} steps, guidance {settings.guidance:g}), once for each of the seeds"
        f" {', '.join(map(str, request.seeds))}, and compared with the clip itself, whose landmarks are the asked ones."
        " Frames with a face are measured,"
        " but not the portrait's own. Numbers are means over clips, weighted by measured frames, with 95 % intervals by"
        f" {request.resamples} bootstrap resamples of persons or sources."
    )


def _notes(request: EvaluateRequest, choices: Sequence[PairChoice], samples: Sequence[Sample]) -> list[str]:
    """What helps to read the numbers, or is missing."""
    notes = []
    if request.split == "train":
        notes.append("The split train is what trainings of this data set read: these clips are not held out.")
    if len(samples) < 2:
        notes.append("With a single clip there is no other sound to shuffle in.")
    for choice in choices:
        if choice.driver_weights is not None and not choice.moves_head:
            notes.append(f"{choice.label}: the head stands still, as there are no weights of audio2pose.")
    folders = {
        f"{part} of {choice.label}": path for choice in choices for part, path in choice.weight_folders().items()
    }
    speakers = {sample.key: sample.speaker for sample in samples}
    return notes + training_notes(folders, data=request.data, split=request.split, speakers=speakers)
