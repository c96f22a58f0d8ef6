"""The report as files: complete, closed in itself, honest about faults, and quick."""

from __future__ import annotations

import dataclasses
import json
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestration.report.page import write_report
from orchestration.report.state import DataState
from orchestration.report.view import bytes_text, decimal_text, duration_text
from talkinghead.files.storage import Storage
from talkinghead.schema import media_shard_name
from tests.support.report_data import MODEL, Clip, Piece, tiny_annotation, write_data
from tests.support.report_state import make_state

HOSTILE = """<script>alert(1)</script> "a" & 'b' $(c) é.mp4"""
CLIPS = [
    *(Clip(key=f"k{number}", person=f"p{number // 2}") for number in range(5)),
    Clip(key="cut", pieces=(Piece(key="cut-cut00"), Piece(key="cut-cut01", kind="filtered", reason="blurred"))),
    Clip(key="filtered", kind="filtered", source=HOSTILE),
    Clip(key="uncut", kind="uncut", source=HOSTILE),
    Clip(key="unreadable", kind="unreadable", source=HOSTILE, message=f"{HOSTILE}: no moov atom"),
    Clip(key="unannotatable", kind="unannotatable"),
    Clip(key="missing", kind="missing"),
]
VOID = {"meta", "img", "br", "link", "input", "hr", "source"}


class Outline(HTMLParser):
    """Tags with their attributes; fails on a tag that is closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, DataState]:
    storage = Storage(tmp_path_factory.mktemp("data"))
    state = write_data(
        storage,
        CLIPS,
        ("v1", "v2"),
        annotation=lambda piece, version: tiny_annotation(30, shift=0.01 * (version == "v2")),
    )
    return storage, state


def report(storage: Storage, state: DataState) -> tuple[str, dict[str, Any]]:
    """Page and numbers."""
    page = storage.read(write_report(storage, state)).decode()
    return page, json.loads(storage.read("report/report.json"))


def test_the_numbers_are_complete_and_add_up(finished: tuple[Storage, DataState]) -> None:
    _, numbers = report(*finished)
    assert numbers["errors"] == []
    assert numbers["inputs"] == len(CLIPS) == sum(numbers["inputs_by_outcome"].values())
    assert numbers["inputs_by_outcome"] == {"sample": 6, "rejected": 3, "quarantined": 2, "pending": 0}
    assert numbers["rejected"] == {"missing_source": 1, "no_face": 1, "small_face": 1}
    assert numbers["quarantined"] == {"crash:SIGSEGV": 1, "error:InvalidDataError": 1}
    assert numbers["pieces"]["rejected_reasons"] == {"blurred": 1, "no_face": 1, "small_face": 1}
    assert (numbers["samples"], numbers["frames"], numbers["frames_indexed"], numbers["shards"]) == (6, 180, 240, 2)
    assert numbers["hours"] == pytest.approx(180 / 25 / 3600, abs=1e-6)
    assert (numbers["annotation_version"], numbers["model_sha256"]) == ("v2", MODEL)
    assert numbers["jobs"]["annotate-v2"]["cpu_ms_per_frame"] == 11
    assert numbers["jobs"]["annotate-v2"]["frames_per_second"] == 200 / 1.25, "only the passes that have a wall time"
    assert numbers["jobs"]["ingest"]["units"] == 9
    assert numbers["difference"]["landmark_mean_px"] == pytest.approx(5.12, abs=0.03)
    assert sum(split["samples"] for split in numbers["splits"].values()) == 6
    storage = finished[0]
    sizes = [storage.size(file.path) for file in storage.list("ann/v2")]
    assert numbers["bytes_annotation"] == sum(filter(None, sizes))
    assert numbers["bytes_media"] == sum(storage.size(media_shard_name(number)) or 0 for number in (0, 1))


def test_the_page_is_closed_in_itself(finished: tuple[Storage, DataState]) -> None:
    page, _ = report(*finished)
    outline = Outline(page)
    tags = [tag for tag, _ in outline.tags]
    assert "script" not in tags and "link" not in tags and "iframe" not in tags
    assert "url(" not in page and "@import" not in page
    for tag, attributes in outline.tags:
        if tag == "img":
            assert attributes["src"].startswith("data:image/webp;base64,") and attributes["alt"]
        assert not any(name.startswith("on") for name in attributes)
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} == ids
    assert tags.count("img") == 6 + 6 + 2


def test_file_names_are_text_not_markup(finished: tuple[Storage, DataState]) -> None:
    page, _ = report(*finished)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &#34;a&#34; &amp; &#39;b&#39; $(c) é.mp4") >= 4


def test_quarantine_names_the_command_that_retries_it(finished: tuple[Storage, DataState]) -> None:
    storage, state = finished
    page, _ = report(storage, state)
    assert f"make retry DATA={storage.uri} CAUSE=error:InvalidDataError" in page
    assert "no moov atom" in page and "Traceback\n  &lt;av&gt;" in page


def test_the_same_state_gives_the_same_bytes(finished: tuple[Storage, DataState]) -> None:
    storage, state = finished
    first = [storage.read(file.path) for _ in [write_report(storage, state)] for file in storage.list("report")]
    second = [storage.read(file.path) for _ in [write_report(storage, state)] for file in storage.list("report")]
    assert len(first) == 3 and first == second


def test_a_finished_data_set_says_so_and_an_unfinished_one_too(finished: tuple[Storage, DataState]) -> None:
    storage, state = finished
    assert "All 11 inputs are accounted for" in report(storage, state)[0]
    page, numbers = report(storage, dataclasses.replace(state, ingest={**state.ingest, "uncut": None}))
    assert "1 of 11 inputs are still to be processed" in page and numbers["pending"] == 1
    assert "All 11" not in page


def test_what_does_not_add_up_is_shown_in_red(finished: tuple[Storage, DataState]) -> None:
    storage, state = finished
    page, numbers = report(storage, dataclasses.replace(state, catalog=state.catalog[1:]))
    assert 'role="alert"' in page and "ingest records belong to no catalog row" in page
    assert numbers["errors"]


def test_a_person_in_two_splits_is_an_error(finished: tuple[Storage, DataState]) -> None:
    storage, state = finished
    index = [dataclasses.replace(row, split="test") if row.key == "k0" else row for row in state.index]
    assert any("p0" in error for error in report(storage, dataclasses.replace(state, index=index))[1]["errors"])


def test_no_samples_and_no_inputs_make_a_report(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for clips in ([], [Clip(key="a", kind="missing"), Clip(key="b", kind="unreadable")]):
        page, numbers = report(storage, make_state(clips))
        Outline(page)
        assert "No samples yet" in page
        assert (numbers["samples"], numbers["inputs"], numbers["errors"]) == (0, len(clips), [])


def test_damaged_shards_are_reported_and_do_not_stop_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    state = write_data(storage, CLIPS)
    storage.write("clips-000000.tar", storage.read("clips-000000.tar")[:3000])
    storage.delete("ann/v1/ann-000001.tar")
    page, numbers = report(storage, state)
    assert any("clips-000000.tar has 3000 bytes" in error for error in numbers["errors"])
    assert any("ann-000001.tar is in the index, but not in DATA" in error for error in numbers["errors"])
    assert any("k0 cannot be read for its image" in error for error in numbers["errors"])
    assert 'role="alert"' in page


def test_many_clips_take_seconds(tmp_path: Path) -> None:
    clips = [Clip(key=f"k{number}", kind="filtered" if number % 5 else "kept") for number in range(10_000)]
    state = make_state(clips)
    started = time.process_time()
    page, numbers = report(Storage(tmp_path), state)
    assert time.process_time() - started < 10
    assert numbers["inputs_by_outcome"]["rejected"] == 8_000
    assert len(page) < 200_000


def test_numbers_read_well() -> None:
    assert [bytes_text(value) for value in (0, 999, 1000, 27_000_000)] == ["0 B", "999 B", "1 kB", "27 MB"]
    assert [duration_text(value) for value in (4.2, 89, 186, 43_000)] == ["4.2 s", "89.0 s", "3.1 min", "11.9 h"]
    assert duration_text(7200, spelled=True) == "2.0 hours"
    assert [decimal_text(value) for value in (None, float("nan"), 0.12345, 12345.6)] == ["–", "–", "0.123", "12,346"]
