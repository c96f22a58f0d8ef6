"""Reader of a tar as samples, with nothing but the standard library."""

from __future__ import annotations

import io
import tarfile


def read_tar(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: content}) of each sample, in order."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            key, _, suffix = info.name.partition(".")
            reader = archive.extractfile(info)
            assert reader is not None
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            samples[-1][1][suffix] = reader.read()
    return samples
