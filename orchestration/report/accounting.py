"""Accounting: every input ends as exactly one of sample, rejected or quarantined, or is still pending.

An input is a catalog row. Ingest makes pieces of it (one, unless the clip was split at cuts); annotation, packing and
the filters then judge each piece. An input is

    sample       when at least one of its pieces is kept;
    pending      when none is kept yet and a unit of it has neither a commit nor a quarantine record, or is not packed;
    quarantined  when its ingest failed, or the annotation of at least one piece failed and no other piece is kept;
    rejected     when all its pieces were judged and none is kept. Reason and score are those of the piece that came
                 furthest, of the longest among them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from annotate.filters import judge
from ingest.source_listing import display_path, shortened
from orchestration.jobs.ingest_inputs import GONE, NOT_TAKEN, REPLACED
from orchestration.outcomes import clip_notes
from orchestration.report.state import DataState
from orchestration.units.records import QuarantineRecord, RejectedPiece, SampleRecord, UnitRecord
from shards.manifest import find_manifest
from talkinghead import dataroot
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.schema import CatalogRow, SampleIndex

Fate = Literal["sample", "rejected", "quarantined", "pending"]
FATES: tuple[Fate, ...] = ("sample", "rejected", "quarantined", "pending")
Job = Literal["source", "ingest", "annotate", "pack", "filter"]
JOBS: tuple[Job, ...] = ("source", "ingest", "annotate", "pack", "filter")
"""In the order in which an input passes them; an outcome names the one that decided it."""

REPORT_NUMBERS = f"{dataroot.REPORT_FOLDER}/report.json"
MISSING_SOURCE = "missing_source"
CSV_HEADER = ("input", "key", "outcome", "reason", "score", "keys", "notes")
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class PieceOutcome:
    """Outcome of one piece of a clip."""

    key: str
    """Sample key."""
    fate: Fate
    job: Job
    """Job that decided it."""
    reason: str | None = None
    """Rejection reason, or quarantine cause."""
    score: float | None = None
    """Score that the reason is about."""
    detail: str = ""
    """More about the reason, for people."""
    frames: int = 0
    """Length of the piece."""
    notes: tuple[str, ...] = ()
    """What is unusual about its source, a line each."""


@dataclass(frozen=True, kw_only=True)
class InputOutcome:
    """Outcome of one catalog row; fate, job and reason are those of its decisive piece."""

    row: CatalogRow
    fate: Fate
    job: Job
    reason: str | None = None
    score: float | None = None
    detail: str = ""
    pieces: tuple[PieceOutcome, ...] = ()
    suffix: str = ""
    """What tells it from another input of the same source and interval."""

    @property
    def keys(self) -> list[str]:
        """Keys of the kept samples that this input gave."""
        return [piece.key for piece in self.pieces if piece.fate == "sample"]

    @property
    def notes(self) -> list[str]:
        """Notes on its pieces, each line once."""
        return list(dict.fromkeys(note for piece in self.pieces for note in piece.notes))

    @property
    def input(self) -> str:
        """Name of the input: data set, source file and interval, e.g. `hdtf:videos/a.mp4@12.5-20`."""
        return input_name(self.row) + self.suffix


@dataclass(frozen=True, kw_only=True)
class FunnelRow:
    """Number of inputs that passed one job, and why others did not."""

    job: Job
    passed: int
    lost: dict[tuple[str, str], int]
    """(fate, reason) → inputs that ended here, most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The outcome of all inputs, and what does not add up."""

    inputs: list[InputOutcome]
    errors: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    """Paths that files of DATA had which were set aside (`DataState.set_aside`)."""

    @property
    def pieces(self) -> list[PieceOutcome]:
        """Pieces of all inputs."""
        return [piece for outcome in self.inputs for piece in outcome.pieces]

    def by_fate(self) -> dict[str, int]:
        """Fate → number of inputs; all four fates are there."""
        counts = Counter(outcome.fate for outcome in self.inputs)
        return {fate: counts[fate] for fate in FATES}

    def reasons(self, fate: Fate) -> dict[str, int]:
        """Reason or cause → number of inputs of this fate, most frequent first."""
        return count_reasons(self.inputs, fate)

    def funnel(self) -> list[FunnelRow]:
        """Numbers of inputs left after each job, and why the others ended; losses and rest add up to all inputs."""
        left = len(self.inputs)
        funnel = []
        for job in JOBS:
            ended = Counter(
                (outcome.fate, outcome.reason or outcome.fate)
                for outcome in self.inputs
                if outcome.job == job and outcome.fate != "sample"
            )
            left -= ended.total()
            # Packing loses nothing in a finished data set: then the funnel is shown without it.
            if job != "pack" or ended:
                ranked = sorted(ended.items(), key=lambda item: (-item[1], item[0]))
                funnel.append(FunnelRow(job=job, passed=left, lost=dict(ranked)))
        return funnel

    def csv(self) -> bytes:
        """Content of `inputs.csv`: one line per input."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # else a carriage return would end a row
        writer.writerow(CSV_HEADER)
        for outcome in self.inputs:
            score = "" if outcome.score is None else f"{outcome.score:.6g}"
            texts = (outcome.input, outcome.row.key, outcome.fate, outcome.reason or "", " ".join(outcome.keys))
            name, key, fate, reason, keys = map(_no_formula, texts)
            writer.writerow((name, key, fate, reason, score, keys, _no_formula("; ".join(outcome.notes))))
        # File names may hold bytes that are no UTF-8 (surrogates, in Python): escape them.
        return text.getvalue().encode("utf-8", "backslashreplace")


def _no_formula(text: str) -> str:
    """The text of a cell; one that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def count_reasons(outcomes: Iterable[InputOutcome | PieceOutcome], fate: Fate) -> dict[str, int]:
    """Reason → number of outcomes of this fate, most frequent first."""
    counts = Counter(outcome.reason or "unknown" for outcome in outcomes if outcome.fate == fate)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def input_name(row: CatalogRow) -> str:
    """Name of an input: data set, source (file, else URL, else the data set's own name), and interval in seconds."""
    name = f"{row.dataset}:{display_path(row.source) if row.source else row.url or row.source_id}"
    if row.start_s is None and row.end_s is None:
        return name
    ends = ["" if end is None else f"{end:.10g}" for end in (row.start_s, row.end_s)]
    return f"{name}@{'-'.join(ends)}"


def _suffixes(rows: Iterable[CatalogRow]) -> dict[str, str]:
    """Key → what tells a row from others of the same name: that its file is another one now, else the key."""
    alike: dict[str, list[CatalogRow]] = defaultdict(list)
    for row in rows:
        alike[input_name(row)].append(row)
    suffixes = {}
    for same in alike.values():
        gone = [row for row in same if not {GONE, NOT_TAKEN, REPLACED}.isdisjoint(row.notes)]
        here = [row for row in same if row not in gone]
        if len(same) > 1:
            suffixes |= {row.key: " (its content before)" for row in gone} if len(gone) == 1 else _keys(gone)
            suffixes |= _keys(here) if len(here) > 1 else {}
    return suffixes


def _keys(rows: Iterable[CatalogRow]) -> dict[str, str]:
    return {row.key: f" ({row.key})" for row in rows}


def account(state: DataState) -> Accounting:
    """Find the outcome of every input, and list everything that does not add up."""
    index = {row.key: row for row in state.index}
    suffixes = _suffixes(state.catalog)
    inputs = [replace(_input_outcome(row, state, index), suffix=suffixes.get(row.key, "")) for row in state.catalog]
    # What is damaged or gone comes first: by it the contradictions are explained.
    errors = list(state.lost)
    for path, why in list(state.unreadable.items())[:_EXAMPLES]:
        errors.append(f"{path} cannot be read, and so does not count: {shortened(why)}")
    if (more := len(state.unreadable) - _EXAMPLES) > 0:
        errors.append(f"{more} more records cannot be read")
    errors += _contradictions(state, inputs, index)
    return Accounting(inputs=inputs, errors=errors, set_aside=state.set_aside)


def complaint(storage: Storage) -> str | None:
    """One line about what the report just written says does not add up, and what to do; None where all is well."""
    numbers = parse_json(storage.read(REPORT_NUMBERS), storage.describe(REPORT_NUMBERS))
    # Before anything is packed there are no shards yet.
    begun = find_manifest(storage) is None and (numbers["pending"] or numbers["pieces"]["pending"])
    if not numbers["shards"] and not begun:
        return (
            f"{storage.uri} holds no sample: make shards SOURCE=<folder with other videos> DATA={storage.uri} fills it"
        )
    errors = [str(error) for error in numbers["errors"]]
    if not errors:
        return None
    more = f", and {len(errors) - 1} more lines of errors in the report" if errors[1:] else ""
    if "makes it again" in errors[0]:
        return f"{errors[0]}{more}"
    advice = (
        f"make verify DATA={storage.uri} lists what is damaged of the shards; make shards DATA={storage.uri}, with"
        " SOURCE where it asks for it, makes again what has no readable record"
    )
    return f"{errors[0]}{more}: {advice}"


def _input_outcome(row: CatalogRow, state: DataState, index: dict[str, SampleIndex]) -> InputOutcome:
    """Outcome of one catalog row."""
    # Inputs that ended before they had pieces.
    if row.source is None:
        return InputOutcome(row=row, fate="rejected", job="source", reason=MISSING_SOURCE)
    ingested = state.ingest.get(row.key)
    if ingested is None:
        return InputOutcome(row=row, fate="pending", job="ingest")
    if isinstance(ingested, QuarantineRecord):
        last = ingested.attempts[-1]
        return InputOutcome(row=row, fate="quarantined", job="ingest", reason=ingested.cause, detail=last.message)
    # Otherwise its pieces decide: those that ingest rejected, and those that it put out.
    pieces = [_rejected_piece(piece, "ingest") for piece in ingested.rejected]
    pieces += [_piece_outcome(sample, state, index) for sample in ingested.samples]
    if not pieces:
        return InputOutcome(
            row=row, fate="rejected", job="ingest", reason="nothing_put_out", detail="the record lists no piece"
        )
    pieces = [replace(piece, notes=tuple(clip_notes(ingested, piece.key))) for piece in pieces]
    decisive = _decisive(pieces)
    return InputOutcome(
        row=row,
        fate=decisive.fate,
        job=decisive.job,
        reason=decisive.reason,
        score=decisive.score,
        detail=decisive.detail,
        pieces=tuple(pieces),
    )


def _piece_outcome(sample: SampleRecord, state: DataState, index: dict[str, SampleIndex]) -> PieceOutcome:
    """Outcome of a piece that ingest put out."""
    # Annotation.
    annotated = state.annotate.get(sample.key)
    frames = sample.num_frames
    if annotated is None:
        return PieceOutcome(key=sample.key, fate="pending", job="annotate", frames=frames)
    if isinstance(annotated, QuarantineRecord):
        return PieceOutcome(
            key=sample.key,
            fate="quarantined",
            job="annotate",
            reason=annotated.cause,
            detail=annotated.attempts[-1].message,
            frames=frames,
        )
    if annotated.rejected and not annotated.samples:
        return _rejected_piece(annotated.rejected[0], "annotate", frames)
    # Packing, then the filters. The index tells the reason and the score; the filters spell out the detail.
    row = index.get(sample.key)
    if row is None:
        return PieceOutcome(key=sample.key, fate="pending", job="pack", frames=frames)
    if row.keep:
        return PieceOutcome(key=sample.key, fate="sample", job="filter", frames=row.num_frames)
    verdict = judge(row.scores, state.filters) if state.filters else None
    return PieceOutcome(
        key=sample.key,
        fate="rejected",
        job="filter",
        reason=row.reason,
        score=row.reason_score,
        detail=verdict.detail if verdict and verdict.reason == row.reason else "",
        frames=row.num_frames,
    )


def _rejected_piece(piece: RejectedPiece, job: Job, frames: int = 0) -> PieceOutcome:
    rejection = piece.rejection
    return PieceOutcome(
        key=piece.key,
        fate="rejected",
        job=job,
        reason=rejection.reason,
        score=rejection.score,
        detail=rejection.detail,
        frames=frames,
    )


def _decisive(pieces: list[PieceOutcome]) -> PieceOutcome:
    """Piece whose outcome the input takes; among equals the first."""
    rank: dict[Fate, int] = {"sample": 3, "pending": 2, "quarantined": 1, "rejected": 0}
    return max(pieces, key=lambda piece: (rank[piece.fate], JOBS.index(piece.job), piece.frames))


def _contradictions(state: DataState, inputs: list[InputOutcome], index: dict[str, SampleIndex]) -> list[str]:
    """Contradictions between records, catalogs and index, one line each."""
    errors: list[str] = []

    def check(keys: Iterable[str], message: str) -> None:
        if found := sorted(set(keys)):
            shown = ", ".join(found[:_EXAMPLES]) + (", …" if len(found) > _EXAMPLES else "")
            errors.append(f"{len(found)} {message}: {shown}")

    # Each of these should hold by construction; a line here means a damaged DATA or a fault of ours.
    clips = Counter(row.key for row in state.catalog)
    ingested = {key: record for key, record in state.ingest.items() if record is not None}
    samples = [sample for record in ingested.values() if isinstance(record, UnitRecord) for sample in record.samples]
    made = Counter(sample.key for sample in samples)
    frames = {sample.key: sample.num_frames for sample in samples}
    kept = {piece.key for outcome in inputs for piece in outcome.pieces if piece.fate == "sample"}

    # Catalog against ingest, ingest against annotation, and the index against all of them.
    check(_repeated(clips), "clip keys stand more than once in the catalogs")
    check(ingested.keys() - clips.keys(), "ingest records belong to no catalog row")
    check(_repeated(made), "samples were put out by more than one clip")
    annotated = {key for key, record in state.annotate.items() if record is not None}
    check(annotated - made.keys(), "annotation records belong to no sample that ingest put out")
    check(_repeated(Counter(row.key for row in state.index)), "samples stand more than once in the index")
    check(index.keys() - made.keys(), "samples in the index come from no input")
    check((row.key for row in state.index if row.keep and row.key not in kept), "kept samples have no finished unit")
    check(
        (key for key, row in index.items() if row.num_frames != frames.get(key, row.num_frames)),
        "samples have another number of frames in the index than ingest put out",
    )
    check(_misjudged(state), "samples are kept or left out in the index otherwise than the filters say")
    check(
        (outcome.row.key for outcome in inputs if outcome.reason == "nothing_put_out"),
        "ingest records list neither a sample nor a rejected piece",
    )
    return errors


def _misjudged(state: DataState) -> list[str]:
    """Keys of the annotated samples whose verdict in the index is not what the filters make of their scores."""
    if state.filters is None:
        return []
    # Rows without any score are those of samples that could not be annotated.
    scored = (row for row in state.index if any(score is not None for score in row.scores.values()))
    verdicts = ((row, judge(row.scores, state.filters)) for row in scored)
    return [row.key for row, verdict in verdicts if (verdict.reason if verdict else None) != row.reason]


def _repeated(counts: Counter[str]) -> list[str]:
    return [key for key, count in counts.items() if count > 1]
