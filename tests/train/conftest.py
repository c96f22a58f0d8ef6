"""Ranks that stay up between the tests of all files: to start them takes longer than most of these trainings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.training import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two processes with a gloo group."""
    pair = Ranks(2, tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes with a gloo group, for the tests of a file."""
    group = Ranks(4, tmp_path_factory.mktemp("four"))
    yield group
    group.stop()
