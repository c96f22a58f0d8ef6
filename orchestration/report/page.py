"""Writing the report: one page, readable offline and on paper, light or dark; its numbers; and the list of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import av.error

from orchestration.report.accounting import Accounting, account
from orchestration.report.diff import VersionDifference, compare_versions
from orchestration.report.images import choose, clip_strip, contact_tile
from orchestration.report.state import DataState
from orchestration.report.summary import summarise
from orchestration.report.unusual import count_notes
from orchestration.report.view import Images, render_page
from shards.index import read_index
from shards.manifest import find_manifest, read_manifest
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.schema import SampleIndex

PAGE = f"{dataroot.REPORT_FOLDER}/index.html"
NUMBERS = f"{dataroot.REPORT_FOLDER}/report.json"
INPUTS = f"{dataroot.REPORT_FOLDER}/inputs.csv"
# Most images on the page, so that its size does not grow with the data set.
MOST_TILES = 40
MOST_STRIPS = 12
MOST_REJECTED_TILES = 16
MOST_UNUSUAL_TILES = 16

Look = TypeVar("Look")


def write_report(storage: Storage, state: DataState) -> str:
    """Write `report/index.html`, `report/report.json` and `report/inputs.csv`.

    Beyond the state, only `DATASET.json`, the index of the version before, and a few members of the shards are read.
    Equal DATA and state give equal bytes.

    Args:
        storage: DATA, the data set's folder or bucket.
        state: State of the data set.

    Returns:
        Path of the page, relative to DATA.

    Raises:
        ValueError: `DATASET.json` or the index of the version before is damaged.
        OSError: DATA cannot be read or written.
    """
    # Outcome of every input, sample images, numbers; then the page, which shows all three.
    accounting = account(state)
    images = look_at_samples(storage, state, accounting)
    summary = summarise(storage, state, accounting, find_manifest(storage), _difference(storage, state))
    summary["errors"] += images.errors
    page = render_page(summary, accounting, state, images, storage.uri)
    # The page last: its numbers are there when it is.
    storage.write(INPUTS, accounting.csv())
    storage.write(NUMBERS, pretty_json(summary))
    storage.write(PAGE, page.encode("utf-8", "backslashreplace"))
    return PAGE


def look_at_samples(storage: Storage, state: DataState, accounting: Accounting) -> Images:
    """Decode the few samples that the page shows; one that cannot be read is listed as an error."""
    errors: list[str] = []

    def look(one: Callable[[Storage, str, SampleIndex], Look], rows: Iterable[SampleIndex]) -> list[Look]:
        seen = []
        for row in rows:
            try:
                seen.append(one(storage, state.version, row))
            except (OSError, EOFError, ValueError, av.error.FFmpegError) as error:
                errors.append(f"{row.key} cannot be read for its image: {error}")
        return seen

    # Kept samples over all groups; then samples that were left out, so that every reason gets its share.
    kept = choose((row for row in state.index if row.keep), MOST_TILES)
    left_out = {piece.key for piece in accounting.pieces if piece.fate == "rejected"}
    by_reason: dict[str, list[SampleIndex]] = {}
    for row in state.index:
        if row.key in left_out:
            by_reason.setdefault(row.reason or "", []).append(row)
    # One sample for each kind of note, the most frequent kinds first.
    rows = {row.key: row for row in state.index}
    firsts = [count.examples[0]["key"] for count in count_notes(accounting)]
    unusual = [rows[key] for key in dict.fromkeys(firsts) if key in rows]
    # Rounded up, so that few reasons fill the row of images.
    share = -(-MOST_REJECTED_TILES // max(len(by_reason), 1))
    rejected = [row for reason in sorted(by_reason) for row in choose(by_reason[reason], share)]
    return Images(
        tiles=look(contact_tile, kept),
        strips=look(clip_strip, kept[:MOST_STRIPS]),
        rejected=look(contact_tile, rejected[:MOST_REJECTED_TILES]),
        unusual=look(contact_tile, unusual[:MOST_UNUSUAL_TILES]),
        errors=sorted(set(errors)),
    )


def _difference(storage: Storage, state: DataState) -> VersionDifference | None:
    """Comparison with the version before, None where there is none."""
    if state.previous_version is None or not state.index:
        return None
    manifest = read_manifest(storage)
    before = list(read_index(storage, manifest.annotation(state.previous_version)).rows())
    return compare_versions(storage, (state.previous_version, before), (state.version, state.index))
