"""`python -m shards verify | ls | export-aniportrait`: look at a data set, check it, hand it to others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from shards.reader import ShardReader
from shards.verify import VerifyReport, verify
from talkinghead.files.storage import Storage

SHOWN = 50
"""Lines of one kind that are printed."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check hashes, counts, key order, member places, and that annotations and media agree."""

    data: str
    """The data set: folder or URI."""
    version: str | None = None
    """Annotation version; all when not given."""
    deep: bool = False
    """Decode every clip instead of one per shard."""

    def run(self) -> int:
        """Returns the exit code."""
        storage = Storage(self.data)
        with _progress() as bar:
            task = bar.add_task("verify", total=None)
            report = verify(
                storage,
                version=self.version,
                deep=self.deep,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _show(report)
        print(
            f"{storage.uri}: {'ok' if report.ok else f'{len(report.problems)} problems'}, {report.samples} samples,"
            f" {report.frames} frames, {report.shards} shards, {report.bytes / 2**20:.1f} MiB,"
            f" {report.decoded} clips decoded, annotations {', '.join(report.versions)}"
        )
        return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the samples, one line each: key, shard, ordinal, frames, split, and why it is not kept."""

    data: str
    """The data set: folder or URI."""
    version: str | None = None
    """Annotation version; the newest when not given."""
    split: str | None = None
    """Only this split."""

    def run(self) -> int:
        """Returns the exit code."""
        reader = ShardReader(self.data, version=self.version, split=self.split, kept=False)
        for row in reader.rows:
            sample = reader.index.row(int(row))
            score = "" if sample.reason_score is None else f"={sample.reason_score:.3g}"
            verdict = "kept" if sample.keep else f"{sample.reason}{score}"
            print(sample.key, sample.shard, sample.ordinal, sample.num_frames, sample.split, verdict, sep="\t")
        return 0


@dataclass(frozen=True, kw_only=True)
class ExportAniportrait:
    """Write samples as PNG frames, landmark files and the JSON that AniPortrait's training reads."""

    data: str
    """The data set: folder or URI."""
    out: Path
    """New or empty folder."""
    version: str | None = None
    """Annotation version; the newest when not given."""
    split: str | None = "train"
    """Only this split."""
    limit: int | None = None
    """At most so many samples."""

    def run(self) -> int:
        """Returns the exit code."""
        from shards.export_aniportrait import COLUMNS, export_aniportrait

        reader = ShardReader(self.data, version=self.version, split=self.split, columns=COLUMNS)
        with _progress() as bar:
            task = bar.add_task("export", total=len(reader))
            report = export_aniportrait(
                reader,
                self.out,
                limit=self.limit,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        for key, reason in report.left_out.items():
            print(f"left out {key}: {reason}", file=sys.stderr)
        print(report.training_json)
        return 0


def _progress() -> Progress:
    """A bar with the time left, on a terminal only."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _show(report: VerifyReport) -> None:
    for name, lines in (("problem", report.problems), ("unknown file", report.unknown)):
        for line in lines[:SHOWN]:
            print(f"{name}: {line}", file=sys.stderr)
        if len(lines) > SHOWN:
            print(f"… and {len(lines) - SHOWN} more of this kind", file=sys.stderr)


Command = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Ls, tyro.conf.subcommand("ls")]
    | Annotated[ExportAniportrait, tyro.conf.subcommand("export-aniportrait")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 1 (problems found, or it failed) or 2 (wrong usage)."""
    command = tyro.cli(Command, prog="python -m shards", description=__doc__, args=arguments)
    try:
        return command.run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
