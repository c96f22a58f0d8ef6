"""A plain folder of media: every file is one input, whatever it is called.

Nothing is opened here, so nothing can be judged here: a text file, an empty file, an image or a sidecar is a row like
a video, and ingest ends it with its cause. So the number of files and the number of outcomes are equal. A folder that
is itself named like a video (`x.mp4/`) is one row too. Only a SOURCE of sound files alone is refused as a whole.
"""

from __future__ import annotations

from pathlib import Path

from ingest.adapters.metadata import Adapter, Parsed
from ingest.source_listing import SourceListing, display_path
from talkinghead.schema import CatalogRow, path_key

VERSION = 1
LICENCE = "unstated (user's own folder)"


def read(source: Path, listing: SourceListing) -> Parsed:
    """One row per file; each is its own split group, since nothing says who is in it.

    Raises:
        ValueError: SOURCE holds sound files and no video.
    """
    listing.check_not_sound_alone(source)
    rows = [_row(path) for path in (*listing.files, *listing.unit_folders)]
    return Parsed(rows=rows, problems=list(listing.problems))


def _row(path: str) -> CatalogRow:
    # By path, not by content: two copies of a file are two inputs.
    key = f"folder-{path_key(path)}"
    return CatalogRow(
        key=key,
        dataset="folder",
        source_id=display_path(path),
        source=path,
        split_group=key,
        licence=LICENCE,
        adapter_version=VERSION,
    )


ADAPTER = Adapter(dataset="folder", read=read)
