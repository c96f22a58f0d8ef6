"""Which clip's sound is shuffled to which."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infer.evaluation.pair_session import shuffled_partners

KEYS = st.lists(st.text("abc-", min_size=1, max_size=6), min_size=2, max_size=30, unique=True)


@given(KEYS, st.integers(0, 5))
def test_no_clip_drives_itself_and_each_drives_one(keys: list[str], seed: int) -> None:
    partners = shuffled_partners(keys, seed)
    assert partners.keys() == set(keys) == set(partners.values())
    assert all(key != other for key, other in partners.items())
    assert partners == shuffled_partners(keys, seed)


def test_seeds_shuffle_differently() -> None:
    keys = [f"clip{number}" for number in range(12)]
    assert len({tuple(shuffled_partners(keys, seed).items()) for seed in range(4)}) == 4


def test_a_single_clip_has_no_partner() -> None:
    assert shuffled_partners(["a"], 0) == {}
