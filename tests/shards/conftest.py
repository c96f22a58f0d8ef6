"""Fixtures: the synthetic data set of `shard_data`, and copies of it to be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from talkinghead.files.storage import Storage
from talkinghead.sampletar import pack_samples
from tests.support.shard_data import add_trace, build
from tests.support.tars import read_tar


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set, shared by all tests: it must not be changed."""
    return build(tmp_path_factory.mktemp("shards") / "data")


@pytest.fixture(scope="session")
def traced(built: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set with the derived column `trace`, shared by all tests: it must not be changed."""
    assert built.local_root
    root = tmp_path_factory.mktemp("traced") / "data"
    shutil.copytree(built.local_root, root)
    add_trace(Storage(root))
    return Storage(root)


@pytest.fixture
def copied(built: Storage, tmp_path: Path) -> Storage:
    """A copy of the data set, to be damaged."""
    assert built.local_root
    shutil.copytree(built.local_root, tmp_path / "data")
    return Storage(tmp_path / "data")


@pytest.fixture
def edit_shard() -> Callable[..., None]:
    """Rewrite a shard of a storage after a change of its list of samples."""

    def edit(storage: Storage, name: str, change: Callable[[list], None]) -> None:
        assert storage.local_root
        path = storage.local_root / name
        with path.open("rb") as stream:
            samples = read_tar(stream.read())
        change(samples)
        path.write_bytes(pack_samples(samples))

    return edit
