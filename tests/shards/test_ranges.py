from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.ranges import READ_OVER, HeldRanges, Range, RangeReader, joined
from talkinghead.files.storage import Storage
from tests.support.counted_store import counted, upload
from tests.support.object_store import LocalS3

RANGES = st.lists(st.builds(Range, st.sampled_from("ab"), st.integers(0, 300), st.integers(1, 40)), max_size=12)


@given(RANGES, st.integers(0, 50))
def test_joined_ranges_hold_all_and_read_over_no_wide_gap(ranges: list[Range], gap: int) -> None:
    spans = joined(ranges, gap)
    assert all(any(span.holds(one) for span in spans) for one in ranges)
    wanted = {(one.path, place) for one in ranges for place in range(one.offset, one.stop)}
    for span in spans:
        unwanted = 0
        for place in range(span.offset, span.stop):
            unwanted = 0 if (span.path, place) in wanted else unwanted + 1
            assert unwanted <= gap
    for one, two in itertools.pairwise(spans):
        assert one.path != two.path or two.offset - one.stop > gap


@given(RANGES, st.integers(0, 50), st.integers(-1, 12))
def test_no_more_ranges_are_left_than_are_wanted(ranges: list[Range], gap: int, most: int) -> None:
    spans, free = joined(ranges, gap, most), joined(ranges, gap)
    files = len({one.path for one in ranges})
    assert spans == sorted(spans) and len(spans) == min(len(free), max(most, files))
    assert all(any(span.holds(one) for span in spans) for one in free)
    assert {(one.path, one.offset) for one in spans} <= {(one.path, one.offset) for one in free}
    assert {(one.path, one.stop) for one in spans} <= {(one.path, one.stop) for one in free}

    def between(found: list[Range]) -> list[int]:
        return sorted(two.offset - one.stop for one, two in itertools.pairwise(found) if one.path == two.path)

    # The widest gaps are those that stay.
    kept = between(spans)
    assert kept == between(free)[len(between(free)) - len(kept) :]


def test_held_ranges_give_only_what_they_have() -> None:
    held = HeldRanges()
    held.hold(Range("a", 10, 5), b"01234")
    assert held.find(Range("a", 11, 3)) == b"123"
    for other in (Range("b", 11, 3), Range("a", 9, 3), Range("a", 13, 3)):
        assert held.find(other) is None


def test_ranges_of_a_store_take_few_requests(built: Storage, s3: LocalS3) -> None:
    storage = upload(built, s3, "ranges")
    reader = RangeReader(storage)
    near = [Range("clips-000000.tar", 0, 100), Range("clips-000000.tar", 5000, 100)]
    with counted(s3) as requests:
        held = reader.read_all([*near, Range("ann/v1/ann-000000.tar", 512, 64)])
    assert sorted(requests) == [("GET", "ann-000000.tar"), ("GET", "clips-000000.tar")]
    for one in near:
        assert held.find(one) == built.read_range(*one)
    assert READ_OVER > 5000
    with pytest.raises(ValueError, match="is shorter than the index says: run make verify"):
        reader.read("clips-000000.tar", 1 << 40, 10)
    with pytest.raises(ValueError, match="is not there, but in the index"):
        reader.read("clips-000099.tar", 0, 10)
