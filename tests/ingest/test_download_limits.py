"""What a download refuses: size, time, lists and live streams, other sites, links in SOURCE, and what it hands over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.__main__ import main
from ingest.download import LOG_NAME, PART_FOLDER, DownloadResult, DownloadSettings, Target, download, read_log
from ingest.download_client import open_client
from ingest.download_limits import PAGE_BYTES, LimitError, VideoLimits
from tests.support.paths import ROOT
from tests.support.video_server import HERE, VideoServer

pytest.importorskip("yt_dlp", reason="needs the extra `download`")

FAST = DownloadSettings(
    sleep_s=0, backoff_s=0, retries=2, timeout_s=60, rate_limit_mib=0, any_site=True, local_hosts=(HERE,), max_gib=0.1
)
GIB = 2.0**30


def _one(url: str, source: Path, settings: DownloadSettings) -> DownloadResult:
    (result,) = download([Target(name="clip", url=url)], source, settings).results
    return result


def _limits(**changes: float) -> VideoLimits:
    return VideoLimits(**{"max_bytes": 1 << 30, "bytes_left": 1 << 30, "max_seconds": 60} | changes)  # pyright: ignore


# --- size and time ----------------------------------------------------------------------------------------------------


def test_a_video_that_announces_too_much_is_refused(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/v.mp4"] = video
    result = _one(server.url("/v.mp4"), tmp_path, replace(FAST, max_gib=(len(video) - 1) / GIB))
    assert (result.status, result.file) == ("refused", None)
    assert "--max-gib" in result.reason
    assert list((tmp_path / PART_FOLDER).iterdir()) == []
    assert _one(server.url("/v.mp4"), tmp_path, replace(FAST, max_gib=len(video) / GIB)).status == "ok"


def test_what_is_announced_counts_before_it_has_come():
    limits = _limits(max_bytes=100)
    limits.on_progress({"filename": "a", "downloaded_bytes": 30, "total_bytes": 60})
    limits.on_progress({"filename": "a", "downloaded_bytes": 60})
    with pytest.raises(LimitError, match="--max-gib"):
        limits.on_progress({"filename": "b", "downloaded_bytes": 1, "total_bytes": 41})
    assert limits.bytes == 61


def test_a_video_without_end_is_cut_off(server: VideoServer, tmp_path: Path):
    server.endless["/v.mp4"] = (bytes(1 << 16), 0.0)
    result = _one(server.url("/v.mp4"), tmp_path, replace(FAST, max_gib=3e6 / GIB))
    assert (result.status, list((tmp_path / PART_FOLDER).iterdir())) == ("refused", [])
    assert "--max-gib" in result.reason


def test_the_total_stops_the_download_and_the_next_goes_on(server: VideoServer, video: bytes, tmp_path: Path):
    names = ("a", "b", "c")
    server.files = {f"/{name}.mp4": video for name in names}
    wanted = [Target(name=name, url=server.url(f"/{name}.mp4")) for name in names]
    settings = replace(FAST, max_total_gib=1.5 * len(video) / GIB)
    first = download(wanted, tmp_path, settings)
    assert [result.status for result in first.results] == ["ok", "failed"]
    assert (first.not_tried, "--max-total-gib" in first.stopped) == (1, True)
    second = download(wanted[1:], tmp_path, settings)
    assert [(result.name, result.status) for result in second.results] == [("b", "ok"), ("c", "failed")]


def test_a_server_that_sends_a_byte_now_and_then_is_left(server: VideoServer, tmp_path: Path):
    # Never slow enough for the time-out of the connection.
    server.endless["/body.mp4"] = (b"x", 0.2)
    server.endless_header.add("/header.mp4")
    for path in ("/body.mp4", "/header.mp4"):
        result = _one(server.url(path), tmp_path, replace(FAST, max_minutes=0.02))
        assert (result.status, "--max-minutes" in result.reason) == ("failed", True), result


def test_a_page_without_end_is_left(server: VideoServer, tmp_path: Path):
    server.endless["/page"] = (b"<html>" + b" " * (1 << 20), 0.0)
    server.kinds["/page"] = "text/html"
    result = _one(server.url("/page"), tmp_path, FAST)
    assert (result.status, f"{PAGE_BYTES >> 20} MiB" in result.reason) == ("refused", True), result


# --- one finished video -----------------------------------------------------------------------------------------------


def test_a_list_of_videos_is_refused(server: VideoServer, video: bytes, tmp_path: Path):
    items = "".join(f"<item><title>{i}</title><link>{server.url('/v.mp4')}?{i}</link></item>" for i in range(3))
    server.files = {"/feed": f"<rss><channel><title>x</title>{items}</channel></rss>".encode(), "/v.mp4": video}
    server.kinds["/feed"] = "application/rss+xml"
    result = _one(server.url("/feed"), tmp_path, FAST)
    assert (result.status, "a list" in result.reason) == ("refused", True)
    assert {path for path, _ in server.log} == {"/feed"}


@pytest.mark.parametrize("status", ["is_live", "is_upcoming", "post_live"])
def test_live_streams_are_refused(status: str):
    for info in ({"live_status": status}, {"is_live": True}):
        with pytest.raises(LimitError, match="live"):
            _limits().check_video(info)
    _limits().check_video({"live_status": "was_live", "is_live": False})


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://example.org/v.mp4", "https://youtu.be/short", "ytsearch:face", "--exec=id"])
def test_only_youtube_is_asked_unless_another_site_is_allowed(url: str, tmp_path: Path):
    settings = replace(FAST, any_site=False, stop_after=1)
    wanted = [Target(name=str(i), url=url) for i in range(3)]
    summary = download(wanted, tmp_path, settings)
    assert [result.status for result in summary.results] == ["refused"] * 3  # not counted as a site's refusals
    assert "--any-site" in summary.results[0].reason


def test_what_is_no_address_of_a_site_is_never_asked(video: bytes, tmp_path: Path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video)
    for url in (
        f"file://{secret}",
        "ytsearch:face",
        "--exec=id",
        "ftp://example.org/v.mp4",
        "http://u:p@example.org/v",
    ):
        result = _one(url, tmp_path / "in", FAST)
        assert (result.status, "no address of a web site" in result.reason) == ("refused", True), url
    assert [path.name for path in (tmp_path / "in").iterdir()] == [LOG_NAME]


# --- SOURCE of a stranger ---------------------------------------------------------------------------------------------


def test_nothing_is_written_through_links_in_source(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/v.mp4"] = video
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    # The log, the folder of parts, and the folder of one part.
    for name in (LOG_NAME, PART_FOLDER, f"{PART_FOLDER}/clip"):
        source = tmp_path / name.replace("/", "_")
        (source / name).parent.mkdir(parents=True)
        (source / name).symlink_to(outside / "kept" if name == LOG_NAME else outside)
        with pytest.raises(ValueError, match="is a link to"):
            _one(server.url("/v.mp4"), source, FAST)
    assert server.log == []  # said before anything is fetched
    # A part itself: the format's name is known to the site.
    part = tmp_path / "in" / PART_FOLDER / "clip"
    part.mkdir(parents=True)
    (part / "mp4.mp4.part").symlink_to(outside / "kept")
    os.mkfifo(part / "mp4.mp4")
    assert _one(server.url("/v.mp4"), tmp_path / "in", FAST).status == "ok"
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("kept", "kept")]


def test_a_link_that_is_not_followed_is_not_replaced(server: VideoServer, video: bytes, tmp_path: Path):
    (tmp_path / "mine.mp4").write_bytes(video)
    source = tmp_path / "in"
    source.mkdir()
    (source / "clip.mp4").symlink_to(tmp_path / "mine.mp4")
    result = _one(server.url("/v.mp4"), source, FAST)
    assert (result.status, "--follow-links" in result.reason) == ("refused", True)
    assert (source / "clip.mp4").is_symlink()


def test_any_log_is_read(tmp_path: Path):
    lines = [b"[" * 100_000, b'{"name": [], "url": 1, "status": "ok"}', b"\xff\xfe", b'{"name": "a", "url": "u"']
    good = b'{"name": "b", "url": "u", "status": "gone"}'
    (tmp_path / LOG_NAME).write_bytes(b"\n".join((*lines, good)))
    assert [result.status for result in read_log(tmp_path).values()] == ["gone"]
    (tmp_path / LOG_NAME).unlink()
    os.mkfifo(tmp_path / LOG_NAME)
    with pytest.raises(ValueError, match="named pipe"):
        read_log(tmp_path)


def test_messages_of_a_site_are_one_printable_line(server: VideoServer, tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "RD_annotion_time.txt").write_text("One.mp4 00:00-00:05\n")
    (tmp_path / "metadata" / "RD_video_url.txt").write_text(f"One {server.url('/%1b]0;x%07%0aerror:')}\x1b[31m\n")
    arguments = ["download", "--dataset", "hdtf", "--source", str(tmp_path), "--sleep-s", "0", "--retries", "0"]
    assert main([*arguments, "--any-site", "--local-hosts", HERE]) == 0
    assert all(line.isprintable() for line in capfd.readouterr().err.splitlines())


# --- what is handed to yt-dlp -----------------------------------------------------------------------------------------


def test_options_of_the_client(tmp_path: Path):
    with open_client(tmp_path, DownloadSettings(), _limits(), print) as client:
        assert list(client._ies) == ["Youtube"]
        for name in (
            "enable_file_urls",
            "usenetrc",
            "cachedir",
            "cookiefile",
            "cookiesfrombrowser",
            "download_archive",
        ):
            assert not client.params.get(name), name
        assert (client.params["external_downloader"], client.params["noplaylist"]) == ({"default": "native"}, True)
        assert client.params["remote_components"] == set()  # no code that is fetched
        assert not any(client._pps.values())
        # Files have our names, whatever the site says.
        name = client.prepare_filename({"format_id": "../../x", "ext": "/etc/passwd", "title": "%(id)s"})
        assert Path(name).parent == tmp_path
        for kind in ("playlist", "multi_video", "compat_list"):
            with pytest.raises(LimitError, match="a list"):
                client.process_ie_result({"_type": kind, "id": "x", "entries": []})
        for protocol in ("rtmp", "m3u8", "websocket_frag", "mhtml"):
            with pytest.raises(LimitError, match=protocol):
                client.dl("x", {"url": f"{protocol}://h/x", "protocol": protocol, "ext": "mp4"})


PROGRAM = """
import sys
from pathlib import Path
from ingest.download import DownloadSettings, Target, download
result = download([Target(name="clip", url=sys.argv[1])], Path(sys.argv[2]), DownloadSettings(
    sleep_s=0, retries=0, any_site=True, local_hosts=("127.0.0.1",))).results[0]
print(result.status, result.reason)
"""


def test_no_plugin_configuration_or_program_is_run(server: VideoServer, video: bytes, tmp_path: Path):
    # A folder that Python looks for modules in, and the user's own configuration.
    server.files["/v.mp4"] = video
    marker = tmp_path / "marker"
    here, home, tools = tmp_path / "here", tmp_path / "home", tmp_path / "tools"
    plugin = here / "yt_dlp_plugins" / "extractor" / "theirs.py"
    for folder in (plugin.parent, home / ".config" / "yt-dlp", tools):
        folder.mkdir(parents=True)
    plugin.write_text(f"open({str(marker)!r}, 'w').write('plugin')\n")
    (home / ".config" / "yt-dlp" / "config").write_text(f"--exec 'touch {marker}'\n")
    for name in ("ffmpeg", "ffprobe", "aria2c"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} > {marker}\n")
        (tools / name).chmod(0o755)
    paths = {"PYTHONPATH": f"{here}:{ROOT}", "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.url("/v.mp4"), str(tmp_path / "in")],
        env=os.environ | paths, cwd=here, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert done.stdout == "ok \n", done.stderr
    assert not marker.exists(), marker.read_text()


def test_limits_are_named_in_the_help(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    out = capfd.readouterr().out
    for option in ("max-gib", "max-total-gib", "max-minutes", "any-site", "local-hosts", "follow-links"):
        assert f"--{option}" in out


def test_a_command_that_refused_videos_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "RD_annotion_time.txt").write_text("One.mp4 00:00-00:05\n")
    (tmp_path / "metadata" / "RD_video_url.txt").write_text("One http://169.254.169.254/latest/meta-data\n")
    assert main(["download", "--dataset", "hdtf", "--source", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / LOG_NAME}\n"
    assert err.splitlines()[-1].startswith("error: 1 videos were refused")
    assert json.loads((tmp_path / LOG_NAME).read_text())["status"] == "refused"
