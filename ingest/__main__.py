"""`python -m ingest …`: build a data set's catalog, download its videos, make the embedded sample."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from ingest.catalog import Catalog, build_catalog, write_catalog
from ingest.download import DownloadSettings, targets
from ingest.download import download as fetch
from ingest.download_log import LOG_NAME, DownloadResult
from ingest.source_listing import display_path
from talkinghead.files.foreign import warn_of_owner
from talkinghead.files.storage import Storage
from talkinghead.runtime.command_line import GOES_ON, Incomplete, run_command_line
from talkinghead.schema import Dataset, DownloadableDataset


def catalog(
    dataset: Dataset,
    source: Path,
    data: str,
    metadata: Path | None = None,
    limit: int | None = None,
    follow_links: bool = False,
    group_by: str | None = None,
) -> str:
    """Read a data set's metadata, find each clip's video in SOURCE, and write DATA/catalog/<dataset>.parquet.

    Args:
        source: Folder with the downloaded videos (or any media, for `folder`).
        data: Folder or URI (s3://…) of the data set that is being built.
        metadata: Folder or file with the official metadata; default: SOURCE/metadata, then SOURCE.
        limit: Keep this many clips, those with a video first.
        follow_links: Take links that lead out of SOURCE; only for a folder of links of your own.
        group_by: Take split group and person of a plain folder from the path: parent, level:N (the N-th folder below
            SOURCE), or regex:PATTERN.
    """
    storage = Storage(data)
    # DATA may lie inside SOURCE: what earlier jobs wrote there is no source of clips.
    exclude = [storage.local_root] if storage.local_root else []
    if storage.local_root and storage.local_root.is_dir():
        warn_of_owner(storage.local_root)
    built = build_catalog(
        dataset, source, metadata, limit, exclude=exclude, follow_links=follow_links, group_by=group_by
    )
    with storage.held():
        path = write_catalog(storage, built)
    _summarise(built)
    return storage.describe(path)


def download(
    dataset: DownloadableDataset,
    source: Path,
    settings: Annotated[DownloadSettings, tyro.conf.arg(name="")],
    metadata: Path | None = None,
    limit: int | None = None,
    follow_links: bool = False,
) -> str | Incomplete:
    """Fetch the missing videos of a data set with yt-dlp, slowly; give the command again to go on where it stopped.

    Every try is a line of SOURCE/download.jsonl: ok; gone (removed or private: not tried again); failed (timed out, …:
    tried again by the next command); refused (too large, live, another site, an address of the local network).

    Args:
        source: Folder for the videos; what is there is not fetched again.
        settings: Quality, pace, retries, and limits.
        metadata: Folder or file with the official metadata; default: SOURCE/metadata, then SOURCE.
        limit: Fetch the videos of this many clips only, counting those whose video is there.
        follow_links: Take links in SOURCE that lead out of it for videos that are there.
    """
    # The catalog tells which videos are missing; nothing of it is written here.
    source.mkdir(parents=True, exist_ok=True)
    listed = build_catalog(dataset, source, metadata, limit, follow_links=follow_links)
    wanted = targets(listed.rows)
    _log(f"{len(listed.rows)} clips; {len(listed.paths)} videos are there, {len(wanted)} to fetch")
    started = time.monotonic()

    def report(result: DownloadResult, done: int, total: int) -> None:
        # Estimate from the mean time per video so far.
        left = (time.monotonic() - started) / done * (total - done)
        what = f"{result.bytes / 1e6:.1f} MB" if result.status == "ok" else result.reason
        _log(f"[{done}/{total}, {left / 60:.0f} min left] {result.name}: {result.status}, {what}")

    # Fetch them one by one; every try is on the disk before the next one begins.
    summary = fetch(wanted, source, settings, on_result=report, on_message=_log)
    counts = ", ".join(f"{summary.count(status)} {status}" for status in ("ok", "gone", "failed", "refused"))
    _log(f"{counts}, {summary.skipped_gone} known to be gone, {summary.not_tried} not tried")
    # An incomplete download is no error: the exit status asks for the same command again.
    result = str(source / LOG_NAME)
    if summary.stopped:
        return Incomplete(result, f"stopped after {summary.stopped}; run the same command again later")
    if failed := summary.count("failed"):
        return Incomplete(result, f"{failed} videos could not be fetched; run the same command again to try them again")
    if refused := summary.count("refused"):
        return Incomplete(result, f"{refused} videos were refused, for the reasons above; --help lists the limits")
    return result


def sample(out: tyro.conf.Positional[Path]) -> str:
    """Make the embedded sample: short talking clips from a public-domain portrait, as a folder of videos.

    Args:
        out: Folder for the videos.
    """
    # Imported here, because it needs scikit-image, which the other commands do not load.
    from ingest.sample import make_sample

    return str(make_sample(out))


def _summarise(catalog: Catalog) -> None:
    missing = catalog.missing_source
    seconds = sum(row.end_s - row.start_s for row in catalog.rows if row.start_s is not None and row.end_s is not None)
    boxes = sum(row.box is not None for row in catalog.rows)
    groups = len({row.split_group for row in catalog.rows})
    _log(
        f"{catalog.dataset}: {len(catalog.rows)} clips in {groups} split groups, {boxes} with a crop box, "
        f"{seconds / 3600:.2f} h of listed intervals"
    )
    _log(
        f"sources: {len(catalog.paths)} found, {len(catalog.unused)} videos not used; of the {len(catalog.rows)} clips "
        f"{catalog.there} are there ({catalog.released} of them released clips), {missing} are not"
    )
    # What a user should know before clips are cut: rows left out, unreadable metadata, missing videos.
    if catalog.left_out:
        _log(f"limit: {catalog.left_out} clips left out")
    if catalog.problems:
        _log(f"{len(catalog.problems)} problems, the first: {catalog.problems[0]}")
    if not catalog.rows:
        _log("warning: nothing was found")
    elif missing == len(catalog.rows):
        _log("warning: no clip has its video in SOURCE; see `python -m ingest download --help`")


def _log(message: str) -> None:
    # One line each, whatever names of files and messages of sites hold.
    print(display_path(message), file=sys.stderr, flush=True)


COMMANDS = (catalog, download, sample)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command_line(COMMANDS, arguments, prog="python -m ingest", about=__doc__, advice=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
