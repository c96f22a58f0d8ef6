"""`python -m shards verify | ls | versions | drop | export-aniportrait`: check a data set, list what it holds, remove a
version, export samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from shards import versions as stored_versions
from shards.drop import drop as remove_version
from shards.reader import ShardReader
from shards.verify import VerifyReport
from shards.verify import verify as find_problems
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.runtime.command_line import Incomplete, run_command_line
from talkinghead.runtime.progress import Progress

SHOWN = 50
"""Lines of one kind that are printed, at most."""


def verify(data: str, version: str | None = None, deep: bool = False) -> str | Incomplete:
    """Check hashes, counts, key order, member places, and that annotations and media agree.

    Args:
        data: Data set: folder or URI.
        version: Annotation version; all when not given.
        deep: Decode every clip instead of one per shard.
    """
    storage = Storage(data)
    with Progress() as progress:
        report = find_problems(
            storage, version=version, deep=deep, progress=lambda done, total: progress("verify", done, total)
        )
    _show(report)
    found = len(report.problems)
    result = (
        f"{storage.uri}: {'ok' if report.ok else f'{found} problems'}, {report.samples} samples,"
        f" {report.frames} frames, {report.shards} shards, {report.bytes / 2**20:.1f} MiB,"
        f" {report.decoded} clips decoded, versions {', '.join([*report.versions, *report.fits])}"
    )
    if report.ok:
        return result
    # Problems give a result, too, but the command ends with an error, so that a script notices.
    advice = (
        "where a line above names a command, run that; delete a shard that is damaged, and make shards packs it again"
        " where its units still give it; put other files back from a copy, or make the data set anew in another DATA"
    )
    return Incomplete(result, f"{found} problems in {storage.uri}: {advice}")


def ls(data: str, version: str | None = None, split: str | None = None) -> str | None:
    """List the samples, one line each: key, shard, ordinal, frames, split, "kept" or the reason why not, and notes.

    Args:
        data: Data set: folder or URI.
        version: Annotation version; the newest when not given.
        split: Split to list: train, val or test; all when not given.
    """
    # Dropped samples, too: the list tells why they are not used.
    reader = ShardReader(data, version=version, split=split, kept=False)
    lines = []
    for row in reader.rows:
        sample = reader.index.row(int(row))
        score = "" if sample.reason_score is None else f"={sample.reason_score:.3g}"
        verdict = "kept" if sample.keep else f"{sample.reason}{score}"
        # A last field on what was unusual about the source, only where there was something.
        about = (sample.key, sample.shard, sample.ordinal, sample.num_frames, sample.split, verdict)
        notes = ["; ".join(sample.notes)] if sample.notes else []
        lines.append("\t".join(map(str, (*about, *notes))))
    return "\n".join(lines) or None


def versions(
    place: tyro.conf.Positional[str | None] = None,
    data: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> str:
    """List annotation versions, derived columns and fits: size, what each was made of, and who needs it.

    Args:
        place: Data set: folder or URI.
        data: The same, as the other commands take it.
        as_json: Print JSON.
    """
    if (where := data or place) is None:
        raise ValueError("name the data set: python -m shards versions DATA")
    found = stored_versions.versions(Storage(where))
    if as_json:
        return json.dumps([item.to_json() for item in found], indent=2, sort_keys=True)
    return stored_versions.table(found)


def drop(version: tyro.conf.Positional[str], data: str, force: bool = False) -> str:
    """Remove a version or a fit, with all that its jobs wrote; refused while another version or a run needs it.

    Args:
        version: Version, or global fit: its name for the newest, or `<fit>@<first digits of its hash>`.
        data: Data set: folder or URI.
        force: Remove it even if a run of training reads it.
    """
    storage = Storage(data)
    with Progress() as progress:
        gone = remove_version(storage, version, force=force, progress=lambda done, total: progress("drop", done, total))
    return f"{storage.uri}: removed {gone.name}, {gone.files:,} files, {gone.bytes:,} bytes freed"


def export_aniportrait(
    data: str,
    out: Path,
    version: str | None = None,
    split: str | None = "train",
    limit: int | None = None,
    absolute: bool = False,
) -> str:
    """Write samples as PNG frames, landmark files and the JSON that AniPortrait's training reads.

    Start that training in OUT, where the JSON's paths lead, or export with --absolute.

    Args:
        data: Data set: folder or URI.
        out: New or empty folder.
        version: Annotation version; the newest when not given.
        split: Split to export: train, val or test.
        limit: Largest number of samples; all when not given.
        absolute: Write absolute paths. They hold on this machine only, and tell the names of its folders.
    """
    # Only when asked for: it loads OpenCV. The module and this command share a name.
    from shards import export_aniportrait as export

    reader = ShardReader(data, version=version, split=split, columns=export.COLUMNS)
    with Progress() as progress:
        report = export.export_aniportrait(
            reader, out, limit=limit, absolute=absolute, progress=lambda done, total: progress("export", done, total)
        )
    for key, reason in report.left_out.items():
        print(f"left out {key}: {reason}", file=sys.stderr)
    return str(report.training_json)


def _show(report: VerifyReport) -> None:
    for name, lines in (("problem", report.problems), ("unknown file", report.unknown)):
        for line in lines[:SHOWN]:
            # Of files that may have any name. stdout holds the result alone.
            print(f"{name}: {line if str(line).isprintable() else shown(str(line))}", file=sys.stderr)
        if len(lines) > SHOWN:
            print(f"… and {len(lines) - SHOWN} more of this kind", file=sys.stderr)


COMMANDS = (verify, ls, versions, drop, export_aniportrait)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command_line(COMMANDS, arguments, prog="python -m shards", about=__doc__)


if __name__ == "__main__":
    sys.exit(main())
