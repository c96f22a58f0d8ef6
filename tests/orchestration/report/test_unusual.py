"""Notes and unusual scores in the report: counted by kind, each with an example, for kept clips and rejected ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from annotate.filters import FilterSettings, judge
from orchestration.outcomes import clip_notes
from orchestration.report.accounting import account
from orchestration.report.page import write_report
from orchestration.report.reasons import REASONS
from orchestration.report.unusual import count_notes, count_scores, note_kind
from orchestration.units.records import RejectedPiece, UnitRecord
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.schema import Rejection
from tests.support.report_data import Clip, Piece, write_data
from tests.support.report_state import make_state

JUMPS = "the clock jumps 2 times: each part was moved to follow the one before"
HDR = "hlg tone-mapped to BT.709"
CLIPS = [
    Clip(key="a", notes={"a": [HDR, JUMPS]}),
    Clip(key="b", kind="filtered", notes={"b": [HDR, "the clock jumps once: each part was moved to follow"]}),
    Clip(
        key="c",
        pieces=(Piece(key="c-cut00", scores={"hdr": 1.0}), Piece(key="c-cut01", scores={"hdr": 0.0})),
        rejected=(RejectedPiece(key="c-cut02", rejection=Rejection(reason="no_face")),),
        notes={"c-cut00": [HDR], "c-cut01": [HDR], "c-cut02": [HDR]},
    ),
    Clip(key="d", kind="uncut", notes={"d": ["1 damaged time stamp: placed where the neighbours say"]}),
    Clip(key="e", kind="uncut", notes={"e": ["3 damaged time stamps: placed where the neighbours say"]}),
    Clip(key="f"),
    Clip(key="old", notes=None),
]


@pytest.mark.parametrize(
    ("notes", "kind"),
    [
        ([HDR], HDR),
        ([JUMPS, "the clock jumps once: each part"], "the clock jumps N times"),
        (["0.40 s of sound are damaged or missing: silence", "12 s of sound are damaged or missing: silence"],
         "N s of sound are damaged or missing"),
        (["box moved by -3, 0 px to lie inside the frame"], "box moved by N, N px to lie inside the frame"),
        (["box of 640x360 made square", "box of 1x2 made square"], "box of N made square"),
        (["also found and not used: a7.mp4, b/8.mkv", "also found and not used: z"], "also found and not used"),
    ],
)  # fmt: skip
def test_notes_that_differ_in_numbers_are_of_one_kind(notes: list[str], kind: str) -> None:
    assert {note_kind(note) for note in notes} == {kind}


def test_notes_are_counted_by_input_and_by_piece_the_rejected_ones_too() -> None:
    counts = {count.kind: count for count in count_notes(account(make_state(CLIPS)))}
    assert list(counts) == [HDR, "the clock jumps N times", "N damaged time stamps"]
    hdr, jumps, stamps = counts.values()
    assert (hdr.inputs, hdr.samples, hdr.left_out) == (3, 3, 2)
    assert [example["key"] for example in hdr.examples] == ["a", "c-cut00", "b"], "of each input one, samples first"
    assert (jumps.inputs, jumps.samples, jumps.left_out) == (2, 1, 1)
    assert jumps.examples[0] == {"key": "a", "note": JUMPS}
    assert (stamps.inputs, stamps.samples, stamps.left_out) == (2, 0, 2), "singular and plural are one kind"


def test_scores_that_are_unusual() -> None:
    scores = (
        {"hdr": 1.0, "audio_padded_fraction": 0.01},
        {"hdr": 1.0, "audio_padded_fraction": 0.5, "audio_missing": 0.0},
        {"hdr": None, "audio_padded_fraction": 1.0, "audio_missing": 1.0},
    )
    clips = [
        Clip(key=str(number), pieces=(Piece(key=str(number), kind=kind, scores=each),))
        for number, (each, kind) in enumerate(zip(scores, ("kept", "filtered", "kept"), strict=True))
    ]
    found = {entry["score"]: entry for entry in count_scores(make_state(clips).index)}
    assert list(found) == ["hdr", "audio_missing", "audio_padded_fraction"]
    assert (found["hdr"]["samples"], found["hdr"]["left_out"], found["hdr"]["largest"]) == (1, 1, 1.0)
    padded = found["audio_padded_fraction"]
    assert (padded["samples"], padded["left_out"], padded["largest"]) == (0, 1, 0.5), (
        "a little is usual, and all of it is no sound"
    )


def test_the_page_shows_them_with_an_image_each(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    hostile = "also found and not used: <script>alert(1)</script>"
    state = write_data(storage, [*CLIPS, Clip(key="g", notes={"g": [hostile]})])
    page = storage.read(write_report(storage, state)).decode()
    section = page[page.index('<section id="unusual">') : page.index('<section id="rejected">')]
    assert "<script" not in page and "also found and not used: &lt;script&gt;" in section
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"num\">(\d+)</td>", section)
    assert rows == [(HDR, "3"), ("the clock jumps N times", "2"), ("N damaged time stamps", "2"),
                    ("also found and not used", "1")]  # fmt: skip
    # `a` stands for two kinds; the damaged stamps have no sample that could be shown.
    assert re.findall(r'alt="Frame \d+ of (\S+), whose source was unusual"', section) == ["a", "g"]
    assert 'href="#unusual"' in page and "<code>hdr</code>" in section
    numbers = parse_json(storage.read("report/report.json"), "report")
    assert [entry["inputs"] for entry in numbers["notes"]] == [3, 2, 2, 1]
    assert numbers["unusual_scores"][0]["score"] == "hdr"


def test_a_data_set_without_notes_has_no_such_section(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    page = storage.read(write_report(storage, write_data(storage, [Clip(key="a"), Clip(key="b", notes={})]))).decode()
    assert 'id="unusual"' not in page and "#unusual" not in page
    assert parse_json(storage.read("report/report.json"), "report")["notes"] == []


def test_notes_of_a_strangers_record_are_short_lines() -> None:
    notes = {"a": ["", "a\x1b[2J\nb", "x" * 10_000, *["fine"] * 1000]}
    found = clip_notes(UnitRecord(job="ingest", key="a", pkey="0", details={"notes": notes}), "a")
    assert found[:2] == ["a\\x1b[2J\\nb", "x" * 499 + "…"] and len(found) <= 64
    assert clip_notes(UnitRecord(job="ingest", key="a", pkey="0"), "a") == []


def test_every_reason_of_the_filters_has_a_sentence(tmp_path: Path) -> None:
    """Each description of a filter begins with its reasons, between backquotes."""
    source = Path(FilterSettings.__module__.replace(".", "/") + ".py").read_text("utf-8")
    reasons = set(re.findall(r"`(\w+)`", " ".join(re.findall(r'^    """((?:`\w+`(?:, )?)+):', source, re.MULTILINE))))
    assert {"no_face", "no_audio", "silent_audio", "jitter"} <= reasons
    assert reasons <= REASONS.keys()
    assert (verdict := judge({"valid_fraction": 0.0}, FilterSettings())) and verdict.reason in REASONS
    storage = Storage(tmp_path)
    page = storage.read(write_report(storage, write_data(storage, [Clip(key="a", kind="uncut")]))).decode()
    assert REASONS["no_face"] in page
