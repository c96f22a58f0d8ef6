"""Download of a catalog's videos with yt-dlp (the extra `download`), one at a time and slowly.

What is in SOURCE already is never fetched again. A video lands under a temporary name in `SOURCE/.download/<name>/`,
where a broken transfer is continued by the next download (HTTP Range), and is renamed to `SOURCE/<name>.<suffix>` when
it is whole and opens as a video. Video and audio that a site keeps apart are put together with PyAV, so no ffmpeg
program is needed; for YouTube, yt-dlp itself wants a JavaScript runtime (deno) to see all qualities.

Each try ends in one line of `SOURCE/download.jsonl`:

    ok      the file is there
    gone    removed, private or closed account (HTTP 404, 410): not tried again unless asked to
    failed  what may pass (HTTP 403, 429, 5xx, time-out, full disk): tried again; several in a row stop the download
"""

from __future__ import annotations

import heapq
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from ingest.adapters.metadata import youtube_id
from ingest.source_listing import has_video_suffix
from talkinghead.schema import CatalogRow, slug

LOG_NAME = "download.jsonl"
PART_FOLDER = ".download"
# Suffixes of containers whose time stamps MP4 keeps exactly.
_MP4_FAMILY = (".mp4", ".m4v", ".m4a", ".mov")

Status = Literal["ok", "gone", "failed"]

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
class DownloadSettings:
    """Settings of a download: quality, pace and retries."""

    max_height: int = 1080
    """Height of the best quality to take, pixels."""
    rate_limit_mib: float = 8.0
    """Largest rate of a transfer in MiB per second; 0: no limit."""
    sleep_s: float = 5.0
    """Pause between two videos in seconds."""
    retries: int = 5
    """Number of retries for one video, each after twice the pause of the one before."""
    backoff_s: float = 2.0
    """Pause before the first retry in seconds."""
    timeout_s: float = 30.0
    """Time without a byte after which a connection counts as lost, seconds."""
    retry_gone: bool = False
    """Whether to try videos again that were gone."""
    stop_after: int = 10
    """Number of failures in a row after which the download stops."""

    def __post_init__(self) -> None:
        if self.max_height < 1 or self.timeout_s <= 0 or self.stop_after < 1:
            raise ValueError("max_height, timeout_s and stop_after must be above 0")
        if min(self.rate_limit_mib, self.sleep_s, self.retries, self.backoff_s) < 0:
            raise ValueError("rate_limit_mib, sleep_s, retries and backoff_s must not be negative")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One video to fetch."""

    name: str
    """File name without suffix."""
    url: str | None
    """Page of the video; None where the metadata has none."""


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """Outcome of one try at a video; a line of `download.jsonl`."""

    name: str
    """File name without suffix: the YouTube id, or the data set's name of the video."""
    url: str | None
    status: Status
    """`ok`: the file is there. `gone`: removed or private, not tried again. `failed`: tried again next time."""
    reason: str = ""
    """Message of the site or of the machine, in one line; empty for `ok`."""
    file: str | None = None
    """Name of the file in SOURCE; None unless `ok`."""
    bytes: int = 0
    """Size of the file."""
    seconds: float = 0.0
    """Duration of the try."""


@dataclass(frozen=True, kw_only=True)
class DownloadSummary:
    """Outcome of a download."""

    results: list[DownloadResult]
    """Results of the videos that were tried."""
    skipped_gone: int
    """Number of videos not tried because an earlier download found them gone."""
    not_tried: int
    """Number of videos left when it stopped early."""

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
        ValueError: yt-dlp is not installed.
    """
    # A missing yt-dlp is reported before a folder is made; the log of earlier downloads says what is gone for good.
    settings = settings or DownloadSettings()
    _import_yt_dlp()
    source.mkdir(parents=True, exist_ok=True)
    log = read_log(source)
    gone = {name for name, result in log.items() if result.status == "gone" and not settings.retry_gone}
    todo = [target for target in wanted if target.name not in gone]
    # One at a time, with a pause: a site that is asked slowly refuses less.
    results: list[DownloadResult] = []
    failures = 0
    for target in todo:
        if results:
            time.sleep(settings.sleep_s)
        result = _fetch(target, source, settings, on_message)
        append_log(source, result)
        results.append(result)
        if on_result:
            on_result(result, len(results), len(todo))
        # Failures in a row mean that the site refuses; going on would only prolong that.
        failures = failures + 1 if result.status == "failed" else 0
        if failures >= settings.stop_after:
            break
    return DownloadSummary(results=results, skipped_gone=len(wanted) - len(todo), not_tried=len(todo) - len(results))


def _import_yt_dlp() -> Any:
    try:
        import yt_dlp
    except ImportError as error:
        raise ValueError('yt-dlp is not installed; run `pip install "talkinghead[download]"`') from error
    return yt_dlp


def _fetch(
    target: Target, source: Path, settings: DownloadSettings, on_message: Callable[[str], None]
) -> DownloadResult:
    """Fetch one video into its part folder and move it into SOURCE; what fails (site, file, disk) is in the result."""
    yt_dlp = _import_yt_dlp()
    started = time.monotonic()
    part = source / PART_FOLDER / target.name

    def ended(status: Any, reason: str = "", file: Path | None = None) -> DownloadResult:
        return DownloadResult(
            name=target.name,
            url=target.url,
            status=status,
            reason=reason,
            file=file.name if file else None,
            bytes=file.stat().st_size if file else 0,
            seconds=round(time.monotonic() - started, 3),
        )

    if target.url is None:
        return ended("failed", "the metadata has no url")
    # The part folder outlives a broken transfer, which is continued next time. The rename is atomic, so a file in
    # SOURCE is always whole.
    try:
        part.mkdir(parents=True, exist_ok=True)
        with _client(part, _options(settings, on_message)) as client:
            info = client.extract_info(target.url, download=True)
        whole = _assemble(info, part)
        file = whole.replace(source / f"{target.name}{whole.suffix.lower()}")
        shutil.rmtree(part)
    except yt_dlp.utils.YoutubeDLError as error:
        return ended(*_judge(str(error)))
    except ValueError as error:  # whole but useless: the next download must not build on it
        shutil.rmtree(part, ignore_errors=True)
        return ended("failed", str(error))
    except OSError as error:
        return ended("failed", f"{error.strerror or error}")
    return ended("ok", file=file)


def _client(part: Path, options: dict[str, Any]) -> Any:
    """A yt-dlp client that writes into `part`; its templates would expand `$x`, `~` and `%` in the folder's name."""
    yt_dlp = _import_yt_dlp()

    # `prepare_filename` is where yt-dlp expands its template; overriding it keeps every path as it is.
    class Client(yt_dlp.YoutubeDL):
        def prepare_filename(self, info_dict: dict[str, Any], *_args: Any, **_kwargs: Any) -> str:
            name = slug(str(info_dict.get("format_id") or "video"))
            return str(part.absolute() / f"{name}.{slug(str(info_dict.get('ext') or 'mp4'))}")

    return Client(options)


def _options(settings: DownloadSettings, on_message: Callable[[str], None]) -> dict[str, Any]:
    """Options of yt-dlp for the settings."""

    def pause(n: int) -> float:
        return min(settings.backoff_s * 2.0**n, 120.0)  # seconds

    return {
        # Video and audio apart (packets are copied into one file later), or else what has both.
        "format": "bv,ba/b",
        "format_sort": [f"res:{settings.max_height}"],
        "continuedl": True,
        "overwrites": False,
        "noplaylist": True,
        # No step that would call an ffmpeg program.
        "fixup": "never",
        "postprocessors": [],
        "updatetime": False,
        # bytes per second, None without a limit
        "ratelimit": settings.rate_limit_mib * (1 << 20) or None,
        "sleep_interval_requests": min(settings.sleep_s, 1.0),
        "retries": settings.retries,
        "fragment_retries": settings.retries,
        "extractor_retries": settings.retries,
        "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), pause),
        "socket_timeout": settings.timeout_s,
        "quiet": True,
        "noprogress": True,
        "logger": _Logger(on_message),
    }


class _Logger:
    """A logger that passes yt-dlp's warnings on. Its commentary is left out, and its errors are in the result."""

    def __init__(self, on_message: Callable[[str], None]) -> None:
        self.warning = on_message

    def debug(self, _message: str) -> None:
        """Drop commentary, and what yt-dlp calls info."""

    def error(self, _message: str) -> None:
        """Drop an error: its text comes as an exception too."""


def _assemble(info: dict[str, Any], part: Path) -> Path:
    """One video file with sound, made of the files that were downloaded.

    Raises:
        ValueError: Nothing was downloaded, or it is no video.
    """
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
    """Status and one-line reason from yt-dlp's error text."""
    # First line only, without terminal colours and without the request to report a bug.
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).removeprefix("ERROR: ").split("\n")[0]
    text = text.split("; please report this issue")[0].strip()
    if _GONE.search(text) and not _PASSING.search(text):
        return "gone", text
    return "failed", text


def read_log(source: Path) -> dict[str, DownloadResult]:
    """Last result of each video in `SOURCE/download.jsonl`, by name; a line cut off by a kill is skipped."""
    try:
        lines = (source / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    results = {}
    for line in lines:
        try:
            result = DownloadResult(**json.loads(line))
        except (ValueError, TypeError):
            continue
        results[result.name] = result
    return results


def append_log(source: Path, result: DownloadResult) -> None:
    """Add one line to `SOURCE/download.jsonl`; it is on the disk when this returns."""
    with (source / LOG_NAME).open("ab+") as stream:
        # A line that a kill left half written is ended first, so that it spoils no other.
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(asdict(result), sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def muxed_suffix(video: Path, audio: Path) -> str:
    """Suffix for a muxed file: `.mp4` when both come out of MP4, which keeps their exact times; otherwise `.mkv`, which
    holds any codec."""
    return ".mp4" if all(path.suffix.lower() in _MP4_FAMILY for path in (video, audio)) else ".mkv"


def mux(video: Path, audio: Path, target: Path) -> None:
    """Write the first video stream of one file and the first audio stream of another into `target`.

    Packets are copied, not encoded again.

    Raises:
        ValueError: A stream is missing, or the container cannot hold it.
    """
    try:
        with av.open(str(video)) as first, av.open(str(audio)) as second, av.open(str(target), "w") as output:
            if not first.streams.video or not second.streams.audio:
                raise ValueError(f"{video.name} has no video or {audio.name} no audio stream")
            # Both files are read at once and their packets merged by time, as a player needs them interleaved.
            inputs = [(first, first.streams.video[0]), (second, second.streams.audio[0])]
            outputs = [output.add_stream_from_template(template=stream) for _, stream in inputs]
            packets = [_packets(container, stream, i) for i, (container, stream) in enumerate(inputs)]
            for _, index, packet in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = outputs[index]
                output.mux(packet)
    except FFmpegError as error:
        raise ValueError(f"{video.name} and {audio.name} cannot be put into one file: {error.strerror}") from error


def _packets(container: InputContainer, stream: Stream, index: int) -> Iterator[tuple[float, int, Packet]]:
    """Decoding time in seconds, `index` and packet for each packet of a stream, in the order of the file."""
    time = 0.0
    for packet in container.demux(stream):
        if packet.size == 0:  # the end of the stream
            continue
        if packet.dts is not None and packet.time_base is not None:
            time = float(packet.dts * packet.time_base)
        yield time, index, packet


def check_video(path: Path) -> None:
    """Raise `ValueError` unless the file opens and has a video stream."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("what was downloaded has no video stream")
    except FFmpegError as error:
        raise ValueError(f"what was downloaded is not a video: {error.strerror}") from error
