"""Download of a catalog's videos with yt-dlp (the extra `download`), one at a time and slowly.

What is in SOURCE already is never fetched again. A video lands under a temporary name in `SOURCE/.download/<name>/`,
where a broken transfer is continued by the next download (HTTP Range), and is renamed to `SOURCE/<name>.<suffix>` when
it is whole and opens as a video. Video and audio that a site keeps apart are put together with PyAV, so no ffmpeg
program is needed; for YouTube, yt-dlp itself wants a JavaScript runtime (deno) to see all qualities.

The addresses come from metadata out of the web. So only YouTube is asked, where the videos of all data sets lie, unless
the user allows other sites; never a host of the local network; and each video has limits (`ingest/download_limits.py`,
`ingest/network_guard.py`). yt-dlp reads no configuration, plugins, cookies or passwords of the user's.

Each try ends in one line of `SOURCE/download.jsonl`:

    ok       the file is there
    gone     removed, private or closed account (HTTP 404, 410): not tried again unless asked to
    failed   what may pass (HTTP 403, 429, 5xx, time-out, full disk): tried again; several in a row stop the download
    refused  not taken by these rules (too large, a live stream, another site, a local address)
"""

from __future__ import annotations

import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.adapters.metadata import youtube_id, youtube_url
from ingest.download_client import DownloadSettings, import_yt_dlp, open_client
from ingest.download_limits import LimitError, VideoLimits
from ingest.download_log import LOG_NAME, DownloadResult, append_log, read_log
from ingest.network_guard import NetworkGuard
from ingest.source_listing import VIDEO_SUFFIXES, has_video_suffix, shortened
from talkinghead.files.foreign import entries_below, refuse_links
from talkinghead.files.uri import hide_known_secrets
from talkinghead.schema import CatalogRow

PART_FOLDER = ".download"

# Messages of a site after which another try may help, even where they also match `_GONE`.
_PASSING = re.compile(
    r"try again later|not a bot|sign in to confirm|HTTP Error (?:403|429|5\d\d)|rate.?limit|timed out"
    r"|your (?:country|location)",
    re.IGNORECASE,
)
# Messages that say that a video is removed or private.
_GONE = re.compile(
    r"HTTP Error (?:404|410)|private video|video is private|video (?:is )?(?:unavailable|not available|removed)"
    r"|no longer available|(?:been|was) (?:removed|deleted|terminated|closed)|does not exist",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One video to fetch."""

    name: str
    """File name without suffix."""
    url: str | None
    """Page of the video; None where the metadata has none."""


@dataclass(frozen=True, kw_only=True)
class DownloadSummary:
    """Outcome of a download."""

    results: list[DownloadResult]
    """Results of the videos that were tried."""
    skipped_gone: int
    """Number of videos not tried because an earlier download found them gone."""
    not_tried: int
    """Number of videos left when it stopped early."""
    stopped: str = ""
    """Reason why it stopped early; empty when it did not."""

    def count(self, status: str) -> int:
        """Number of results with this status."""
        return sum(result.status == status for result in self.results)


def targets(rows: Iterable[CatalogRow]) -> list[Target]:
    """Missing videos of a catalog, each once, in the order of the rows.

    Rows without an interval are left out: their source is a released clip, which has no url of its own.
    """
    found: dict[str, Target] = {}
    for row in rows:
        if row.source is None and row.start_s is not None:
            name = youtube_id(row.url) or row.source_id
            found.setdefault(name, Target(name=name, url=row.url))
    return list(found.values())


def download(
    wanted: list[Target],
    source: Path,
    settings: DownloadSettings | None = None,
    *,
    on_result: Callable[[DownloadResult, int, int], None] | None = None,
    on_message: Callable[[str], None] = lambda _: None,
) -> DownloadSummary:
    """Fetch videos into SOURCE and record how each ended.

    Args:
        wanted: Videos to fetch, from `targets`.
        source: Folder for the videos; made when it is not there.
        settings: Quality, pace and retries; None: the defaults.
        on_result: Called with (result, videos done, total videos) after each video.
        on_message: Called with each of yt-dlp's warnings.

    Raises:
        ValueError: yt-dlp is not installed, a host of `local_hosts` is not known, or SOURCE holds a link where the
            download writes.
    """
    # A missing yt-dlp is reported before a folder is made; the log of earlier downloads says what is gone for good.
    settings = settings or DownloadSettings()
    import_yt_dlp()
    guard = NetworkGuard(settings.local_hosts)
    source.mkdir(parents=True, exist_ok=True)
    log = read_log(source)
    for name in (LOG_NAME, PART_FOLDER):
        refuse_links(source, source / name)
    gone = {name for name, result in log.items() if result.status == "gone" and not settings.retry_gone}
    todo = [target for target in wanted if target.name not in gone]
    # One at a time, with a pause: a site that is asked slowly refuses less.
    results: list[DownloadResult] = []
    failures, bytes_left, stopped = 0, int(settings.max_total_gib * 2**30), ""
    for target in todo:
        if results and results[-1].status != "refused":
            time.sleep(settings.sleep_s)
        limits = VideoLimits(
            max_bytes=int(settings.max_gib * 2**30),
            bytes_left=bytes_left,
            max_seconds=settings.max_minutes * 60,
        )
        result = _fetch(target, source, settings, limits, guard, on_message)
        append_log(source, result)
        results.append(result)
        if on_result:
            on_result(result, len(results), len(todo))
        # Failures in a row mean that the site refuses; going on would only prolong that.
        failures = failures + 1 if result.status == "failed" else 0
        bytes_left -= limits.bytes
        if (limits.error and limits.error.of_all) or bytes_left <= 0:
            stopped = f"{settings.max_total_gib:g} GiB were fetched (--max-total-gib)"
        elif failures >= settings.stop_after:
            stopped = f"{failures} failures in a row: the site is refusing"
        if stopped:
            break
    not_tried = len(todo) - len(results)
    return DownloadSummary(
        results=results,
        skipped_gone=len(wanted) - len(todo),
        not_tried=not_tried,
        stopped=stopped if not_tried else "",
    )


def _fetch(
    target: Target,
    source: Path,
    settings: DownloadSettings,
    limits: VideoLimits,
    guard: NetworkGuard,
    on_message: Callable[[str], None],
) -> DownloadResult:
    """Fetch one video into its part folder and move it into SOURCE; what fails (site, file, disk) is in the result."""
    yt_dlp = import_yt_dlp()
    started = time.monotonic()
    part = source / PART_FOLDER / target.name

    def ended(status: Any, reason: str = "", file: Path | None = None) -> DownloadResult:
        return DownloadResult(
            name=target.name,
            url=target.url,
            status=status,
            reason=shortened(reason),
            file=file.name if file else None,
            bytes=file.stat().st_size if file else 0,
            seconds=round(time.monotonic() - started, 3),
        )

    if target.url is None:
        return ended("failed", "the metadata has no url")
    refuse_links(source, part)
    # The part folder outlives a broken transfer, which is continued next time. The rename is atomic, so a file in
    # SOURCE is always whole.
    try:
        address = _address(target.url, settings, limits)
        _refuse_own_links(source, target.name, limits)
        _make_part_folder(part)
        with guard.active(limits.refuse), limits.alarm(), open_client(part, settings, limits, on_message) as client:
            info = client.extract_info(address, download=True)
        whole = _assemble(info, part)
        file = whole.replace(source / f"{target.name}{whole.suffix.lower()}")
        shutil.rmtree(part)
    except (LimitError, yt_dlp.utils.YoutubeDLError) as error:
        limit = limits.error or error
        if not isinstance(limit, LimitError):
            return ended(*_judge(str(limit)))
        if limit.status == "refused":  # what is there of it is of no use
            shutil.rmtree(part, ignore_errors=True)
        return ended(limit.status, str(limit))
    except ValueError as error:  # whole but useless: the next download must not build on it
        shutil.rmtree(part, ignore_errors=True)
        return ended("failed", str(error))
    except OSError as error:
        return ended("failed", f"{error.strerror or error}")
    return ended("ok", file=file)


def _address(url: str, settings: DownloadSettings, limits: VideoLimits) -> str:
    """The address to ask: that of the YouTube video itself, or what the metadata have where any site is allowed.

    Raises:
        LimitError: It is none that may be asked.
    """
    if identifier := youtube_id(url):
        return youtube_url(identifier)
    if not settings.any_site:
        raise limits.refuse("no address of a YouTube video, where this data set's videos lie; --any-site takes it")
    try:
        parts = urllib.parse.urlsplit(url)
        host, user = parts.hostname, parts.username
    except ValueError:
        host = user = None
    if not host or parts.scheme.lower() not in ("http", "https") or user or not url.isprintable() or " " in url:
        raise limits.refuse("no address of a web site (https://host/…)")
    return url


def _refuse_own_links(source: Path, name: str, limits: VideoLimits) -> None:
    """Raise `LimitError` where SOURCE holds the video as a link that is not followed, which would be replaced."""
    for suffix in VIDEO_SUFFIXES:
        if (source / f"{name}{suffix}").is_symlink():
            raise limits.refuse(f"{name}{suffix} is a link that is not followed; --follow-links takes it")


def _make_part_folder(part: Path) -> None:
    """Make the folder of a transfer, or keep what is there of it, which yt-dlp will add to."""
    part.mkdir(parents=True, exist_ok=True)
    # A link would be written through, and a pipe waited for. Nothing of ours makes them.
    if any(not entry.is_file(follow_symlinks=False) for entry in entries_below(part)):
        shutil.rmtree(part)
        part.mkdir()


def _assemble(info: dict[str, Any], part: Path) -> Path:
    """One video file with sound, made of the files that were downloaded.

    Raises:
        ValueError: Nothing was downloaded, or it is no video.
    """
    # Imported here, because it needs FFmpeg and OpenCV, which listing does not load.
    from ingest.muxing import check_video, mux, muxed_suffix

    files = [Path(entry["filepath"]) for entry in info.get("requested_downloads") or []]
    if not files:
        raise ValueError("nothing was downloaded: the address shows a page or a list, not one video")
    whole = files[0]
    if len(files) > 1:
        whole = part / f"muxed{muxed_suffix(files[0], files[1])}"
        mux(files[0], files[1], whole)
    check_video(whole)
    # An unusual suffix would hide the file from the next catalog, so it is given one that is listed.
    if not has_video_suffix(whole.name):
        whole = whole.rename(whole.with_suffix(".mkv" if whole.suffix != ".mkv" else ".mp4"))
    return whole


def _judge(message: str) -> tuple[str, str]:
    """Status and one-line reason from yt-dlp's error text; the record of downloads is shared, so it names no secret."""
    # First line only, without terminal colours and without the request to report a bug.
    text = re.sub(r"\x1b\[[0-9;]*m", "", hide_known_secrets(message)).removeprefix("ERROR: ").split("\n")[0]
    text = text.split("; please report this issue")[0].strip()
    if _GONE.search(text) and not _PASSING.search(text):
        return "gone", text
    return "failed", text
