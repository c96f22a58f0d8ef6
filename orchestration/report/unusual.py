"""What was unusual about the sources: notes counted by kind, and how many samples have an unusual score.

A note is a line of ingest about one piece of a clip, such as `3 broken packets skipped`. Notes that differ in numbers
only, or after a colon, are of one kind: `N broken packets skipped`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ingest.source_listing import shortened
from orchestration.report.accounting import Accounting, PieceOutcome
from talkinghead.schema import MOST_PADDED_SOUND, SampleIndex

MOST_EXAMPLES = 3
"""Examples of a kind of notes."""

# "2", "0.40", "-3", "640x360"; not the number of a name such as BT.709.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:x\d+)?")


@dataclass(frozen=True, kw_only=True)
class NoteCount:
    """How often one kind of note occurs."""

    kind: str
    """The note in words, with `N` for numbers."""
    inputs: int
    """Inputs with such a note on at least one piece."""
    samples: int
    """Kept samples that have it."""
    left_out: int
    """Other pieces that have it: rejected, quarantined, or pending."""
    examples: list[dict[str, str]]
    """A piece that has it of some inputs, kept samples first: `key`, and `note` as it is."""

    def to_json(self) -> dict[str, Any]:
        """An entry of `notes` in `report.json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class UnusualScore:
    """A score that is 0 for ordinary clips."""

    score: str
    title: str
    above: float = 0.0
    """Value above which a sample counts: sound ends a little before or after the images in ordinary clips, too."""
    unless: str | None = None
    """Score of samples that do not count for this one, where it is not 0."""


UNUSUAL_SCORES = (
    UnusualScore(score="hdr", title="High dynamic range (HDR), tone-mapped to BT.709"),
    UnusualScore(score="interlaced", title="Interlaced, deinterlaced"),
    UnusualScore(score="mirrored", title="Stored mirrored, turned back by the file's display matrix"),
    UnusualScore(score="clock_jumps", title="Jumps of the clock"),
    UnusualScore(score="damaged_time_stamps", title="Damaged time stamps"),
    UnusualScore(score="damaged_fraction", title="Share of damaged frames"),
    UnusualScore(score="audio_nan_samples", title="Samples of the sound that are no numbers"),
    UnusualScore(score="audio_missing", title="No sound at all"),
    UnusualScore(
        score="audio_padded_fraction",
        title="Share of silence in place of missing sound",
        above=MOST_PADDED_SOUND,
        unless="audio_missing",
    ),
    UnusualScore(score="upside_down_fraction", title="Share of frames with the face upside down"),
)
"""In the order of the page."""


def note_kind(note: str) -> str:
    """Kind of a note: its words up to a colon, with `N` for each number."""
    # After a colon stands how it was handled, or a list of names.
    return _NUMBER.sub("N", note.partition(": ")[0]).replace(" once", " N times")


def count_notes(accounting: Accounting) -> list[NoteCount]:
    """Kinds of notes on the pieces of all inputs, the most frequent first."""
    kinds: dict[str, list[tuple[int, PieceOutcome, str]]] = defaultdict(list)
    words: dict[str, str] = {}
    for number, outcome in enumerate(accounting.inputs):
        for piece in outcome.pieces:
            for note in piece.notes:
                # "N damaged time stamp" and "N damaged time stamps" are of one kind, named by the longer words.
                kind = note_kind(note)
                plain = re.sub(r"s\b", "", kind)
                words[plain] = max(words.get(plain, ""), kind, key=len)
                kinds[plain].append((number, piece, note))
    counts = [_count(words[plain], found) for plain, found in kinds.items()]
    counts += _count_set_aside(accounting.set_aside)
    return sorted(counts, key=lambda count: (-count.inputs, -count.samples, count.kind))


def _count_set_aside(paths: Sequence[str]) -> list[NoteCount]:
    """Files of DATA that were damaged or lost, as notes: nobody should have to look for them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        kind = "records were" if path.startswith(("records/", "quarantine/")) else "plans or catalogs were"
        kinds[f"{kind} damaged, or what they name was lost"].append(path)
    then = "set aside in damaged/, and made again"
    return [
        NoteCount(
            kind=kind,
            inputs=len(found),
            samples=0,
            left_out=0,
            examples=[{"key": shortened(path), "note": f"{kind}: {then}"} for path in found[:MOST_EXAMPLES]],
        )
        for kind, found in kinds.items()
    ]


def _count(kind: str, found: Sequence[tuple[int, PieceOutcome, str]]) -> NoteCount:
    kept = {piece.key for _, piece, _ in found if piece.fate == "sample"}
    # One of each input, in the same order for every run: first those that can be looked at in the shards.
    shown: dict[int, tuple[str, str]] = {}
    for number, piece, note in sorted(found, key=lambda one: (one[1].fate != "sample", one[1].frames == 0, one[1].key)):
        shown.setdefault(number, (piece.key, note))
    return NoteCount(
        kind=kind,
        inputs=len({number for number, _, _ in found}),
        samples=len(kept),
        left_out=len({piece.key for _, piece, _ in found} - kept),
        examples=[{"key": key, "note": note} for key, note in list(shown.values())[:MOST_EXAMPLES]],
    )


def count_scores(index: Iterable[SampleIndex]) -> list[dict[str, Any]]:
    """Entries of `unusual_scores` in `report.json`: scores of which at least one sample has an unusual value."""
    rows = list(index)
    entries = []
    for unusual in UNUSUAL_SCORES:
        found = [
            (value, row.keep)
            for row in rows
            if (value := row.scores.get(unusual.score)) is not None
            and value > unusual.above
            and not (unusual.unless and row.scores.get(unusual.unless))
        ]
        if found:
            entries.append(
                {
                    "score": unusual.score,
                    "title": unusual.title,
                    "above": unusual.above,
                    "samples": sum(keep for _, keep in found),
                    "left_out": sum(not keep for _, keep in found),
                    "largest": max(value for value, _ in found),
                }
            )
    return entries
