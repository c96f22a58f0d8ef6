"""Adapters: one module per data set, from its official metadata to catalog rows."""

from __future__ import annotations

from ingest.adapters import celebv_hq, folder, hdtf, vfhq
from ingest.adapters.metadata import Adapter
from talkinghead.schema import DATASETS

ADAPTERS: dict[str, Adapter] = {
    adapter.dataset: adapter for adapter in (hdtf.ADAPTER, celebv_hq.ADAPTER, vfhq.ADAPTER, folder.ADAPTER)
}
# The command line offers the names of the schema, so each of them needs its adapter.
assert tuple(ADAPTERS) == DATASETS


def adapter_of(dataset: str) -> Adapter:
    """The adapter of a data set; raises `ValueError` with the known names."""
    if dataset not in ADAPTERS:
        raise ValueError(f"no data set is called {dataset!r}; choose one of {', '.join(ADAPTERS)}")
    return ADAPTERS[dataset]
