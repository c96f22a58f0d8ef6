"""The yt-dlp client of a download: its settings, its options, and what it may not do.

It reads no configuration, plugins, cookies or passwords of the user's, starts no program but a JavaScript runtime, and
takes one finished video from an address, never a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.download_limits import VideoLimits
from ingest.source_listing import shortened
from talkinghead.schema import slug

# Ways of transfer that yt-dlp has itself. The others start a program (ffmpeg, rtmpdump), which no limit would hold for.
_PROTOCOLS = re.compile(r"https?|http_dash_segments|m3u8_native")


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """Settings of a download: quality, pace, retries, and limits."""

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
    max_gib: float = 8.0
    """Largest size of one video in GiB; about four hours at 1080 lines."""
    max_total_gib: float = 1000.0
    """Largest size of all videos that one command fetches, in GiB; the same command goes on after it."""
    max_minutes: float = 180.0
    """Longest time for one video in minutes; the next command continues the transfer."""
    any_site: bool = False
    """Whether to ask other sites than YouTube, with all of yt-dlp's extractors."""
    local_hosts: tuple[str, ...] = ()
    """Hosts of the local network (names or addresses) that may be asked all the same, such as a mirror."""

    def __post_init__(self) -> None:
        if self.max_height < 1 or self.timeout_s <= 0 or self.stop_after < 1:
            raise ValueError("max_height, timeout_s and stop_after must be above 0")
        if not min(self.max_gib, self.max_total_gib, self.max_minutes) > 0:
            raise ValueError("max_gib, max_total_gib and max_minutes must be above 0")
        if min(self.rate_limit_mib, self.sleep_s, self.retries, self.backoff_s) < 0:
            raise ValueError("rate_limit_mib, sleep_s, retries and backoff_s must not be negative")


def import_yt_dlp() -> Any:
    """The module yt-dlp; raises `ValueError` where it is not installed."""
    # Documented by yt-dlp. Otherwise it would load plugins from the user's folders and from the current one.
    os.environ["YTDLP_NO_PLUGINS"] = "1"
    try:
        import yt_dlp
    except ImportError as error:
        raise ValueError('yt-dlp is not installed; run `pip install "talkinghead[download]"`') from error
    return yt_dlp


def open_client(part: Path, settings: DownloadSettings, limits: VideoLimits, on_message: Callable[[str], None]) -> Any:
    """A yt-dlp client, to be used as a context manager.

    Args:
        part: Folder for the files, whose names are those of yt-dlp's formats.
        settings: Quality, pace and retries.
        limits: Limits of the video.
        on_message: Called with each of yt-dlp's warnings.
    """
    yt_dlp = import_yt_dlp()

    class Client(yt_dlp.YoutubeDL):
        # Where yt-dlp expands its template: `$x`, `~` and `%` in the folder's name, and what a site says.
        def prepare_filename(self, info_dict: dict[str, Any], *_args: Any, **_kwargs: Any) -> str:
            name = slug(str(info_dict.get("format_id") or "video"))
            return str(part.absolute() / f"{name}.{slug(str(info_dict.get('ext') or 'mp4'))}")

        # Every result of an extractor, also one that another leads to.
        def process_ie_result(self, ie_result: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            limits.check_video(ie_result)
            return super().process_ie_result(ie_result, *args, **kwargs)

        # Every request, of pages and of videos. A limit that was reached inside is not taken for the network's fault.
        def urlopen(self, req: Any) -> Any:
            limits.check_time()
            try:
                response = super().urlopen(req)
            except yt_dlp.utils.YoutubeDLError:
                if limits.error:
                    raise limits.error from None
                raise
            read = response.read
            response.read = lambda amt=None: limits.read_page(read) if amt is None else read(amt)
            return response

        # Every transfer.
        def dl(self, name: str, info: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            protocol = yt_dlp.utils.determine_protocol(info)
            if not _PROTOCOLS.fullmatch(protocol):
                raise limits.refuse(f"the site sends it by {shortened(protocol)}, which would need another program")
            return super().dl(name, info, *args, **kwargs)

    return Client(_options(settings, limits, on_message))


def _options(settings: DownloadSettings, limits: VideoLimits, on_message: Callable[[str], None]) -> dict[str, Any]:
    """Options of yt-dlp for the settings."""

    def pause(n: int) -> float:
        return min(settings.backoff_s * 2.0**n, 120.0)  # seconds

    own = f"[protocol~='^({_PROTOCOLS.pattern})$']"
    return {
        # Video and audio apart (packets are copied into one file later), or else what has both.
        "format": f"bv{own},ba{own}/b{own}",
        "format_sort": [f"res:{settings.max_height}"],
        "continuedl": True,
        "overwrites": False,
        # One finished video, of YouTube unless other sites are allowed.
        "allowed_extractors": ["default"] if settings.any_site else ["youtube"],
        "noplaylist": True,
        "match_filter": limits.check_video,
        "progress_hooks": [limits.on_progress],
        # No step that would call an ffmpeg program, and no other program.
        "fixup": "never",
        "postprocessors": [],
        "external_downloader": {"default": "native"},
        "updatetime": False,
        # Nothing of this machine: no local files, no cookies, passwords and caches of the user's. (A configuration is
        # read by yt-dlp's command line only.)
        "enable_file_urls": False,
        "cookiefile": None,
        "cookiesfrombrowser": None,
        "usenetrc": False,
        "cachedir": False,
        # bytes per second, None without a limit
        "ratelimit": settings.rate_limit_mib * (1 << 20) or None,
        "sleep_interval_requests": min(settings.sleep_s, 1.0),
        "retries": settings.retries,
        "fragment_retries": settings.retries,
        "extractor_retries": settings.retries,
        "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), pause),
        "socket_timeout": settings.timeout_s,
        "color": "never",
        "quiet": True,
        "noprogress": True,
        "logger": _Logger(on_message),
    }


class _Logger:
    """A logger that passes yt-dlp's warnings on. Its commentary is left out, and its errors are in the result."""

    def __init__(self, on_message: Callable[[str], None]) -> None:
        self._on_message = on_message

    def warning(self, message: str) -> None:
        """Pass a warning on, which may quote a site, in one line."""
        self._on_message(shortened(message))

    def debug(self, _message: str) -> None:
        """Drop commentary, and what yt-dlp calls info."""

    def error(self, _message: str) -> None:
        """Drop an error: its text comes as an exception too."""
