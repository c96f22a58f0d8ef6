"""Every input has exactly one outcome, the counts add up, and what contradicts itself is named."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate.filters import FilterSettings
from orchestration.jobs.ingest_inputs import REPLACED
from orchestration.report.accounting import FATES, MISSING_SOURCE, account, input_name
from orchestration.report.state import DataState
from orchestration.units.records import RejectedPiece, UnitRecord
from talkinghead.schema import Rejection
from tests.support.report_data import Clip, Kind, Piece
from tests.support.report_state import make_state

FATE_OF_KIND = {
    "kept": "sample",
    "filtered": "rejected",
    "uncut": "rejected",
    "missing": "rejected",
    "unannotatable": "quarantined",
    "unreadable": "quarantined",
    "waiting": "pending",
}
PIECE_KINDS: list[Kind] = ["kept", "filtered", "unannotatable", "waiting"]


@st.composite
def clip_lists(draw: st.DrawFn) -> list[Clip]:
    """Clips of every kind, some cut into pieces of different fates."""
    clips = []
    for number in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(get_args(Kind)))
        kinds = draw(st.lists(st.sampled_from(PIECE_KINDS), max_size=4)) if kind == "kept" else []
        pieces = tuple(
            Piece(key=f"c{number}-cut{n:02d}", kind=piece, num_frames=draw(st.integers(1, 90)))
            for n, piece in enumerate(kinds)
        )
        clips.append(Clip(key=f"c{number}", kind=kind, pieces=pieces))
    return clips


@given(clip_lists())
@settings(max_examples=80, deadline=None)
def test_all_counts_add_up(clips: list[Clip]) -> None:
    state = make_state(clips)
    accounting = account(state)
    assert accounting.errors == []
    assert [outcome.row.key for outcome in accounting.inputs] == [clip.key for clip in clips]
    fates = accounting.by_fate()
    assert sum(fates.values()) == len(clips)
    for fate in ("rejected", "quarantined"):
        assert sum(accounting.reasons(fate).values()) == fates[fate]
    assert sum(piece.fate == "sample" for piece in accounting.pieces) == sum(row.keep for row in state.index)
    funnel = accounting.funnel()
    assert funnel[-1].passed == fates["sample"]
    left = len(clips)
    for job in funnel:
        assert job.passed == left - sum(job.lost.values())
        left = job.passed


@given(clip_lists())
@settings(max_examples=80, deadline=None)
def test_an_input_takes_the_best_fate_of_its_pieces(clips: list[Clip]) -> None:
    for clip, outcome in zip(clips, account(make_state(clips)).inputs, strict=True):
        fates = {FATE_OF_KIND[piece.kind] for piece in clip.made} or {FATE_OF_KIND[clip.kind]}
        best = next(fate for fate in ("sample", "pending", "quarantined", "rejected") if fate in fates)
        assert outcome.fate == best
        assert outcome.keys == [piece.key for piece in clip.made if piece.kind == "kept"]


def test_the_longest_of_the_pieces_that_came_furthest_gives_the_reason() -> None:
    pieces = (
        Piece(key="c-cut00", kind="filtered", num_frames=40, reason="blurred", score=3.0),
        Piece(key="c-cut01", kind="filtered", num_frames=70, reason="profile", score=61.0),
    )
    short = RejectedPiece(key="c-cut02", rejection=Rejection(reason="too_short", score=12.0))
    [outcome] = account(make_state([Clip(key="c", pieces=pieces, rejected=(short,))])).inputs
    assert (outcome.fate, outcome.job, outcome.reason, outcome.score) == ("rejected", "filter", "profile", 61.0)
    assert len(outcome.pieces) == 3


def test_a_row_without_source_is_rejected_and_one_that_is_not_packed_waits() -> None:
    clips = [Clip(key="gone", kind="missing"), Clip(key="done")]
    gone, done = account(make_state(clips, index=[])).inputs
    assert (gone.fate, gone.reason, gone.job) == ("rejected", MISSING_SOURCE, "source")
    assert (done.fate, done.job) == ("pending", "pack")


def test_the_table_has_a_line_per_input_and_keeps_awkward_names() -> None:
    source = 'a "quoted", <b>&\n=cmd.mp4'
    clips = [Clip(key="a", source=source), Clip(key="b", kind="filtered")]
    lines = list(csv.DictReader(io.StringIO(account(make_state(clips)).csv().decode(), newline="")))
    assert list(lines[0]) == ["input", "key", "outcome", "reason", "score", "keys", "notes"]
    assert lines[0]["input"] == "folder:" + source.replace("\n", "\\n") + "@1.5-"
    assert [line["outcome"] for line in lines] == ["sample", "rejected"]
    assert (lines[0]["keys"], lines[1]["reason"], lines[1]["score"]) == ("a", "small_face", "81.5")


def test_the_table_has_the_notes_of_an_input_once() -> None:
    pieces = (Piece(key="a-cut00"), Piece(key="a-cut01", kind="filtered"))
    notes = {"a-cut00": ["=deinterlaced", "1 s is missing"], "a-cut01": ["=deinterlaced"]}
    clips = [Clip(key="a", pieces=pieces, notes=notes), Clip(key="old")]
    lines = list(csv.DictReader(io.StringIO(account(make_state(clips)).csv().decode(), newline="")))
    assert [line["notes"] for line in lines] == ["'=deinterlaced; 1 s is missing", ""]


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+1+cmd", "-1+cmd", "@SUM(1)", "\t=1", "\r=1"])
def test_no_cell_of_the_table_is_a_formula(text: str) -> None:
    """Reasons come from DATA, which may be a stranger's."""
    state = make_state([Clip(key="a", pieces=(Piece(key="a", kind="filtered", reason=text),))])
    [line] = list(csv.DictReader(io.StringIO(account(state).csv().decode(), newline="")))
    assert line["reason"] == f"'{text}"


def test_input_names_tell_clips_of_one_video_apart() -> None:
    row = Clip(key="a").row
    names = {
        input_name(dataclasses.replace(row, start_s=start, end_s=end))
        for start, end in ((None, None), (0.0, None), (None, 3.0), (1.0, 3.0), (1.0001, 3.0))
    }
    assert len(names) == 5


def test_inputs_of_one_name_are_told_apart() -> None:
    """Two faces of one interval by their keys; a file that was exchanged by what became of it."""
    state = make_state([Clip(key=key) for key in ("a", "b", "c", "d", "e")])
    source, notes = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}, {"d": (REPLACED,)}
    rows = [
        dataclasses.replace(row, source=source[row.key], notes=notes.get(row.key, ()), start_s=None)
        for row in state.catalog
    ]
    names = [outcome.input.partition(":")[2] for outcome in account(dataclasses.replace(state, catalog=rows)).inputs]
    assert names == ["x (a)", "x (b)", "y", "y (its content before)", "z"]


Change = Callable[[DataState], DataState]


def _without(state: DataState, **lists: object) -> DataState:
    return dataclasses.replace(state, **lists)


CONTRADICTIONS: dict[str, Change] = {
    "more than once in the catalogs": lambda s: _without(s, catalog=[*s.catalog, s.catalog[0]]),
    "ingest records belong to no catalog row": lambda s: _without(s, catalog=s.catalog[1:]),
    "put out by more than one clip": lambda s: _without(s, ingest={**s.ingest, "b": s.ingest["a"]}),
    "annotation records belong to no sample": lambda s: _without(s, annotate={**s.annotate, "x": s.annotate["a"]}),
    "more than once in the index": lambda s: _without(s, index=[*s.index, s.index[0]]),
    "in the index come from no input": lambda s: _without(s, ingest={**s.ingest, "a": None}),
    "kept samples have no finished unit": lambda s: _without(s, annotate={**s.annotate, "a": None}),
    "another number of frames": lambda s: _without(s, index=[dataclasses.replace(s.index[0], num_frames=31)]),
    "list neither a sample nor": lambda s: _without(
        s, ingest={**s.ingest, "b": UnitRecord(job="ingest", key="b", pkey="0")}
    ),
    "otherwise than the filters say": lambda s: _without(
        s, filters=FilterSettings(), index=[dataclasses.replace(s.index[0], scores={"sharpness": 1.0}), *s.index[1:]]
    ),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_a_contradiction_is_named(message: str) -> None:
    state = make_state([Clip(key="a"), Clip(key="b")])
    assert account(state).errors == []
    accounting = account(CONTRADICTIONS[message](state))
    assert any(message in error for error in accounting.errors), accounting.errors
    assert Counter(outcome.fate for outcome in accounting.inputs).keys() <= set(FATES)


def test_a_sample_without_scores_is_not_held_against_the_filters() -> None:
    piece = Piece(key="a", kind="filtered", reason="annotate_failed", score=None, scores={"sharpness": None})
    state = make_state([Clip(key="a", pieces=(piece,))], filters=FilterSettings())
    assert account(state).errors == []


def test_the_filters_say_what_was_measured() -> None:
    piece = Piece(key="a", kind="filtered", reason="blurred", score=1.0, scores={"sharpness": 1.0})
    state = make_state([Clip(key="a", kind="filtered", pieces=(piece,))], filters=FilterSettings())
    accounting = account(state)
    assert accounting.errors == []
    assert accounting.inputs[0].detail == "sharpness 1 is below 25"
