"""What rank 0 concludes from the signs of life of all ranks."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from train.launch.roster import Roster


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8))
def test_the_rank_that_has_come_least_far_is_the_one_that_the_others_wait_for(counts: list[int]) -> None:
    roster = Roster(len(counts), now=0.0)
    for rank, count in enumerate(counts):
        roster.beat(rank, 100.0, count, f"worked on step {count}", 40.0)
    found = roster.laggard(100.0)
    if len(set(counts)) == 1:
        assert found is None
    else:
        assert found is not None and counts[found.rank] == min(counts) and "for 40 s" in found.message
        assert (roster.laggard(100.0, 39.0) is None) is False and roster.laggard(100.0, 41.0) is None


def test_a_rank_is_given_the_time_that_the_others_have_waited_for_it() -> None:
    """All of them may take long to read what they begin with."""
    roster = Roster(3, now=0.0)
    roster.beat(0, 700.0, 2, "worked on step 1", 300.0)
    roster.beat(1, 700.0, 1, "waited for its first data", 700.0)
    roster.beat(2, 700.0, 2, "worked on step 1", 20.0)
    assert roster.laggard(700.0, 600.0) is None
    roster.beat(0, 1001.0, 2, "worked on step 1", 601.0)
    found = roster.laggard(1001.0, 600.0)
    assert found is not None and found.rank == 1 and "for 1001 s" in found.message


@given(st.lists(st.floats(0, 50), min_size=2, max_size=8), st.floats(3, 40))
def test_silence_is_counted_from_the_newest_sign(seen: list[float], silence_s: float) -> None:
    roster = Roster(len(seen), now=0.0)
    for rank, at in enumerate(seen):
        roster.beat(rank, at, 1, None, 0.0)
    found = roster.silent(50.0, silence_s)
    late = {rank for rank, at in enumerate(seen) if 50.0 - at > silence_s}
    assert found is None if not late else found is not None and found.rank in late
    # What this process itself has slept is nobody's silence.
    roster.slept(50.0)
    assert roster.silent(50.0, silence_s) is None


def test_ranks_that_have_left_are_not_missed() -> None:
    roster = Roster(3, now=0.0)
    roster.beat(0, 10.0, 5, None, 0.0)
    roster.leave(1)
    roster.leave(1)
    roster.beat(1, 1.0, 1, "worked", 0.0)  # still on its way when it left
    assert set(roster.signs) == {0, 2}
    roster.leave(2)
    assert roster.silent(10.0, 3.0) is None and roster.laggard(10.0) is None


def test_the_machine_is_named_if_it_is_another_one() -> None:
    roster = Roster(3, now=0.0)
    roster.hosts |= {1: "node07", 2: socket.gethostname()}
    assert [roster.name(rank) for rank in range(3)] == ["rank 0", "rank 1 on node07", "rank 2"]
