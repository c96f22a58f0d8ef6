"""Equal inputs: one stays, by a function of names; a packed one in any case; renamed files are known by content."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Set
from dataclasses import replace

from ingest.duplicates import Input, find_duplicates, renamed
from talkinghead.schema import CatalogRow


def made(
    key: str, content: str | None = "c", *, dataset: str = "folder", source: str | None = None, **changes
) -> Input:
    row = CatalogRow(
        key=key, dataset=dataset, source_id=key, source=source or f"{key}.mp4", split_group=key, licence="x"
    )
    return Input(row=replace(row, **changes), content=content)


def stays(inputs: Iterable[Input], packed: Set[str] = frozenset()) -> dict[str, str]:
    return {key: row.key for key, row in find_duplicates(inputs, packed).items()}


def test_the_first_name_stays_in_any_order() -> None:
    inputs = [made("z", source="a.mp4"), made("b", source="b.mp4"), made("c", source="sub/c.mp4"), made("d", "other")]
    for order in itertools.permutations(inputs):
        assert stays(order) == {"b": "z", "c": "z"}


def test_a_data_set_with_metadata_stays_before_a_folder_and_a_packed_clip_before_all() -> None:
    inputs = [made("a"), made("z", dataset="celebv-hq"), made("y", dataset="vfhq")]
    assert stays(inputs) == {"a": "z", "y": "z"}
    assert stays(inputs, {"a"}) == {"z": "a", "y": "a"}
    # Two that are packed already both stay: shards never change.
    assert stays(inputs, {"a", "y"}) == {"z": "y"}


def test_other_parts_of_one_file_and_unreadable_files_are_no_duplicates() -> None:
    intervals = [made("a", start_s=0.0, end_s=4.0), made("b", start_s=4.0, end_s=8.0), made("c")]
    boxes = [made("d", box=(0, 0, 1, 1), box_width=1.0, box_height=1.0), made("e", box=(0, 0, 0.5, 1))]
    assert stays([*intervals, *boxes]) == {}
    assert stays([made("a", None), made("b", None)]) == {}


def test_a_renamed_file_keeps_its_row() -> None:
    gone = [made("old", "1", source="x.mp4"), made("lost", "2"), made("unknown", None)]
    here = [made("new", "1", source="deep/x.mp4"), made("more", "3"), made("bad", None)]
    found = renamed(gone, here)
    assert {key: (row.key, row.source) for key, row in found.items()} == {"new": ("old", "deep/x.mp4")}


def test_equal_files_that_were_renamed_together_are_paired_by_name() -> None:
    gone = [made("k2", source="2.mp4"), made("k1", source="1.mp4")]
    here = [made("n1", source="d/1.mp4"), made("n2", source="d/2.mp4"), made("n3", source="d/3.mp4")]
    assert {key: row.key for key, row in renamed(gone, here).items()} == {"n1": "k1", "n2": "k2"}
