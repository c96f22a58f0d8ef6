"""`python -m ingest …`: build a data set's catalog, download its videos, make the embedded sample.

The result's path is the last line on stdout; everything else goes to stderr. Exit code 0: done; 1: it failed, or a
part of it did; 2: the arguments are wrong.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ingest.catalog import Catalog, build_catalog, write_catalog
from ingest.download import DownloadSettings, download, targets
from ingest.download_log import LOG_NAME, DownloadResult
from talkinghead.files.storage import Storage

Dataset = Literal["hdtf", "celebv-hq", "vfhq", "folder"]
DownloadableDataset = Literal["hdtf", "celebv-hq", "vfhq"]


@dataclass(frozen=True, kw_only=True)
class CatalogCommand:
    """Read a data set's metadata, find each clip's video in SOURCE, and write DATA/catalog/<dataset>.parquet."""

    dataset: Dataset
    source: Path
    """Folder with the downloaded videos (or any media, for `folder`)."""
    data: str
    """Folder or URI (s3://, gs://, …) of the data set that is being built."""
    metadata: Path | None = None
    """Folder or file with the official metadata; default: SOURCE/metadata, then SOURCE."""
    limit: int | None = None
    """Keep this many clips, those with a video first."""

    def run(self) -> int:
        """Build, write, summarise."""
        storage = Storage(self.data)
        exclude = [storage.local_root] if storage.local_root else []
        catalog = build_catalog(self.dataset, self.source, self.metadata, self.limit, exclude=exclude)
        path = write_catalog(storage, catalog)
        _summarise(catalog)
        print(storage.describe(path))
        return 0


@dataclass(frozen=True, kw_only=True)
class DownloadCommand:
    """Fetch the missing videos of a data set with yt-dlp, slowly; run it again to go on where it stopped.

    Every try is a line of SOURCE/download.jsonl: ok; gone (removed or private: not tried again); failed (refused,
    timed out, …: tried again by the next run).
    """

    dataset: DownloadableDataset
    source: Path
    """Folder for the videos; what is there is not fetched again."""
    metadata: Path | None = None
    """Folder or file with the official metadata; default: SOURCE/metadata, then SOURCE."""
    limit: int | None = None
    """Fetch the videos of this many clips only, counting those whose video is there."""
    settings: Annotated[DownloadSettings, tyro.conf.arg(name="")] = field(default_factory=DownloadSettings)

    def run(self) -> int:
        """Fetch what is missing; 1 when something failed or was left."""
        self.source.mkdir(parents=True, exist_ok=True)
        catalog = build_catalog(self.dataset, self.source, self.metadata, self.limit)
        wanted = targets(catalog.rows)
        _log(f"{len(catalog.rows)} clips; {len(catalog.paths)} videos are there, {len(wanted)} to fetch")
        started = time.monotonic()

        def report(result: DownloadResult, done: int, total: int) -> None:
            left = (time.monotonic() - started) / done * (total - done)
            what = f"{result.bytes / 1e6:.1f} MB" if result.status == "ok" else result.reason
            _log(f"[{done}/{total}, {left / 60:.0f} min left] {result.name}: {result.status}, {what}")

        summary = download(wanted, self.source, self.settings, on_result=report, on_message=_log)
        counts = ", ".join(f"{summary.count(status)} {status}" for status in ("ok", "gone", "failed"))
        _log(f"{counts}, {summary.skipped_gone} known to be gone, {summary.not_tried} not tried")
        if summary.not_tried:
            stop = self.settings.stop_after
            _log(f"stopped after {stop} failures in a row: the site is refusing; run it again later")
        print(self.source / LOG_NAME)
        return 1 if summary.count("failed") or summary.not_tried else 0


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Make the embedded sample: short talking clips from a public-domain portrait, as a folder of videos."""

    out: tyro.conf.Positional[Path]
    """Folder for the videos."""

    def run(self) -> int:
        """Render it."""
        from ingest.sample import make_sample

        print(make_sample(self.out))
        return 0


def _summarise(catalog: Catalog) -> None:
    missing = catalog.missing_source
    seconds = sum(row.end_s - row.start_s for row in catalog.rows if row.start_s is not None and row.end_s is not None)
    boxes = sum(row.box is not None for row in catalog.rows)
    groups = len({row.split_group for row in catalog.rows})
    _log(
        f"{catalog.dataset}: {len(catalog.rows)} clips in {groups} split groups, {boxes} with a crop box, "
        f"{seconds / 3600:.2f} h of listed intervals"
    )
    _log(f"sources: {len(catalog.paths)} found, {missing} clips without one, {len(catalog.unused)} videos not used")
    if catalog.left_out:
        _log(f"limit: {catalog.left_out} clips left out")
    if catalog.problems:
        _log(f"{len(catalog.problems)} problems, the first: {catalog.problems[0]}")
    if not catalog.rows:
        _log("warning: nothing was found")
    elif missing == len(catalog.rows):
        _log("warning: no clip has its video in SOURCE; see `python -m ingest download --help`")


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


Command = (
    Annotated[CatalogCommand, tyro.conf.subcommand("catalog")]
    | Annotated[DownloadCommand, tyro.conf.subcommand("download")]
    | Annotated[SampleCommand, tyro.conf.subcommand("sample")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        command = tyro.cli(Command, prog="python -m ingest", description=__doc__, args=arguments)  # pyright: ignore
        return command.run()
    except ValueError as error:
        _log(f"error: {error}")
        return 2
    except OSError as error:
        _log(f"error: {error.strerror}: {error.filename}" if error.filename else f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _log("error: interrupted; run the same command again to go on")
        return 1


if __name__ == "__main__":
    sys.exit(main())
