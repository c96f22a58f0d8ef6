"""The bench's S3 server: it answers as S3 does, late, and counts requests for shards."""

from __future__ import annotations

import time

from orchestration.bench.delayed_store import Counts, delayed_store
from talkinghead.files.storage import Storage


def test_requests_for_shards_wait_and_are_counted() -> None:
    with delayed_store(0.3) as store:
        data = Storage(store.uri("data"))
        data.write("clips-000000.tar", bytes(range(100)))
        data.write("about.json", b"{}")
        store.counts()
        assert data.read("about.json") == b"{}" and store.counts() == Counts(requests=0, size=0)
        started = time.perf_counter()
        assert bytes(data.read_range("clips-000000.tar", 10, 20)) == bytes(range(10, 30))
        found = store.counts()
        assert found.size == 20 and found.requests >= 1
        assert time.perf_counter() - started >= 0.3 * found.requests
        assert store.counts() == Counts(requests=0, size=0)
        assert store.uri("data").count("bench:bench@") == 1
