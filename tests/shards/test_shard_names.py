"""Names of shards and of their rewritings."""

from __future__ import annotations

import pytest

from shards.shard_names import next_revision, plain_name


@pytest.mark.parametrize("plain", ["clips-000042.tar", "ann/v1/ann-000000.tar", "ann/a.r2/ann-000001.tar"])
def test_revisions_count_on_and_lead_back(plain: str) -> None:
    first = next_revision(plain)
    second = next_revision(first)
    assert first.endswith(".r1.tar") and second.endswith(".r2.tar")
    assert plain_name(first) == plain_name(second) == plain_name(plain) == plain


def test_what_is_no_revision_is_its_own_name() -> None:
    for name in ("clips-000042.r0.tar", "clips-000042.rx.tar", "clips.r1"):
        assert plain_name(name) == name
