"""Names of shards: a shard is named by its number, and a rewritten one by its number and a revision.

`clips-000042.tar` becomes `clips-000042.r1.tar`, then `clips-000042.r2.tar`: a file that a reader may have open is
never replaced by another one. `DATASET.json` says which of them counts.
"""

from __future__ import annotations

import re

_REVISED = re.compile(r"(?P<plain>.+)\.r(?P<revision>[1-9][0-9]{0,5})\.tar")


def plain_name(name: str) -> str:
    """Name of the same shard without a revision."""
    found = _REVISED.fullmatch(name)
    return f"{found['plain']}.tar" if found else name


def next_revision(name: str) -> str:
    """Name of the shard's next revision."""
    found = _REVISED.fullmatch(name)
    revision = int(found["revision"]) + 1 if found else 1
    return f"{plain_name(name).removesuffix('.tar')}.r{revision}.tar"
