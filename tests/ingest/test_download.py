"""Downloads against a server on this machine: whole, broken and continued, gone, refused, useless."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from ingest import download as download_module
from ingest.__main__ import main
from ingest.catalog import build_catalog
from ingest.download import (
    LOG_NAME,
    PART_FOLDER,
    DownloadResult,
    DownloadSettings,
    Target,
    append_log,
    download,
    read_log,
    targets,
)
from ingest.muxing import mux, muxed_suffix
from tests.support.video_server import HERE, VideoServer, render

pytest.importorskip("yt_dlp", reason="needs the extra `download`")

FAST = DownloadSettings(
    sleep_s=0, backoff_s=0, retries=0, timeout_s=60, rate_limit_mib=0, any_site=True, local_hosts=(HERE,)
)


def _one(server: VideoServer, path: str, source: Path, settings: DownloadSettings = FAST) -> DownloadResult:
    (result,) = download([Target(name="clip", url=server.url(path))], source, settings).results
    return result


def test_download_lands_whole_under_its_name(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/v.mp4"] = video
    source = tmp_path / "in $HOME %(id)s 'x' ~ ü"
    result = _one(server, "/v.mp4", source)
    assert (result.status, result.file, result.bytes) == ("ok", "clip.mp4", len(video))
    assert (source / "clip.mp4").read_bytes() == video
    assert sorted(path.name for path in source.iterdir()) == [PART_FOLDER, "clip.mp4", LOG_NAME]
    assert list((source / PART_FOLDER).iterdir()) == []
    assert read_log(source) == {"clip": result}


def test_broken_transfer_is_continued_by_the_next_run(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/v.mp4"] = video
    half = len(video) // 2
    server.break_after["/v.mp4"] = [len(video), half]  # first the probe of what it is, then the transfer
    first = _one(server, "/v.mp4", tmp_path)
    assert first.status == "failed"
    assert not (tmp_path / "clip.mp4").exists()
    parts = list((tmp_path / PART_FOLDER / "clip").iterdir())
    kept = sum(part.stat().st_size for part in parts)
    assert 0 < kept <= half
    server.log.clear()
    second = _one(server, "/v.mp4", tmp_path)
    assert second.status == "ok"
    assert f"bytes={kept}-" in server.ranges("/v.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == video
    assert read_log(tmp_path)["clip"] == second


def test_broken_transfer_is_continued_within_a_run(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/v.mp4"] = video
    server.break_after["/v.mp4"] = [len(video), 20_000, 20_000]
    result = _one(server, "/v.mp4", tmp_path, replace(FAST, backoff_s=0.01, retries=3))
    assert result.status == "ok", result.reason
    continued = [int(header[6:-1]) for header in server.ranges("/v.mp4") if header]
    assert len(continued) == 2
    assert 0 < continued[0] < continued[1]
    assert (tmp_path / "clip.mp4").read_bytes() == video


MANIFEST = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" profiles="x">
 <Period><AdaptationSet mimeType="video/mp4">
  <Representation id="low" codecs="avc1.42c00b" bandwidth="9" width="32" height="32"><BaseURL>low.mp4</BaseURL>
  </Representation>
  <Representation id="high" codecs="avc1.42c00b" bandwidth="99" width="64" height="64"><BaseURL>p.mp4</BaseURL>
  </Representation></AdaptationSet>
 <AdaptationSet mimeType="audio/mp4">
  <Representation id="sound" codecs="mp4a.40.2" bandwidth="9"><BaseURL>s.mp4</BaseURL></Representation>
 </AdaptationSet></Period></MPD>"""


def test_video_and_sound_that_are_kept_apart_become_one_file(server: VideoServer, video: bytes, tmp_path: Path):
    server.files["/d/all.mpd"] = MANIFEST.encode()
    server.files["/d/p.mp4"] = video
    server.files["/d/s.mp4"] = render(tmp_path / "s.mp4", video=False, audio=True).read_bytes()
    server.status["/d/low.mp4"] = 404  # the better one has to be chosen
    result = _one(server, "/d/all.mpd", tmp_path / "in")
    assert result.status == "ok", result.reason
    with av.open(str(tmp_path / "in" / str(result.file))) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.video[0].width == 64
        assert len(list(container.decode(video=0))) == 25


@pytest.mark.parametrize(("code", "status"), [(404, "gone"), (410, "gone"), (403, "failed"), (500, "failed")])
def test_http_errors(server: VideoServer, tmp_path: Path, code: int, status: str):
    server.status["/v.mp4"] = code
    result = _one(server, "/v.mp4", tmp_path)
    assert result.status == status
    assert str(code) in result.reason
    assert "\n" not in result.reason


def test_gone_is_not_asked_again_and_failed_is(server: VideoServer, video: bytes, tmp_path: Path):
    server.status["/refused.mp4"] = 403
    wanted = [Target(name=name, url=server.url(f"/{name}.mp4")) for name in ("missing", "refused")]
    assert [r.status for r in download(wanted, tmp_path, FAST).results] == ["gone", "failed"]
    server.files.update({"/missing.mp4": video, "/refused.mp4": video})
    server.status.clear()
    server.log.clear()
    summary = download(wanted, tmp_path, FAST)
    assert [(r.name, r.status) for r in summary.results] == [("refused", "ok")]
    assert summary.skipped_gone == 1
    assert server.ranges("/missing.mp4") == []
    again = replace(FAST, retry_gone=True)
    assert [(r.name, r.status) for r in download(wanted[:1], tmp_path, again).results] == [("missing", "ok")]


def test_what_is_no_video_is_not_kept(server: VideoServer, tmp_path: Path):
    server.files["/v.mp4"] = b"<html>come back later</html>" * 200
    result = _one(server, "/v.mp4", tmp_path)
    assert result.status == "failed"
    assert "not a video" in result.reason
    assert [path.name for path in tmp_path.iterdir() if path.name != LOG_NAME] == [PART_FOLDER]
    assert list((tmp_path / PART_FOLDER).iterdir()) == []


def test_the_run_stops_when_the_site_refuses(server: VideoServer, tmp_path: Path):
    server.status.update({f"/{i}.mp4": 403 for i in range(5)})
    wanted = [Target(name=str(i), url=server.url(f"/{i}.mp4")) for i in range(5)]
    summary = download(wanted, tmp_path, replace(FAST, stop_after=2))
    assert (len(summary.results), summary.not_tried) == (2, 3)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access to this video", "gone"),
        ("ERROR: [youtube] abc: Video unavailable. This video has been removed by the uploader", "gone"),
        ("ERROR: [youtube] abc: Video unavailable. The YouTube account has been terminated", "gone"),
        ("ERROR: [youtube] abc: Video unavailable", "gone"),
        ("ERROR: [youtube] abc: Sign in to confirm you’re not a bot. Use --cookies", "failed"),
        ("ERROR: [youtube] abc: Sign in to confirm your age. This video may be inappropriate", "failed"),
        ("ERROR: [youtube] abc: Video unavailable. This content isn't available, try again later.", "failed"),
        ("ERROR: [youtube] abc: The uploader has not made this video available in your country", "failed"),
        ("ERROR: unable to download video data: HTTP Error 403: Forbidden", "failed"),
        ("ERROR: [generic] Unable to download webpage: The read operation timed out", "failed"),
    ],
)
def test_messages_are_judged(message: str, status: str):
    assert download_module._judge(message)[0] == status


def test_log_survives_a_torn_line(tmp_path: Path):
    first = DownloadResult(name="a", url="u", status="failed", reason="x")
    append_log(tmp_path, first)
    with (tmp_path / LOG_NAME).open("ab") as stream:
        stream.write(b'{"name": "b", "sta')
    second = DownloadResult(name="a", url="u", status="ok", file="a.mp4", bytes=1)
    append_log(tmp_path, second)
    assert read_log(tmp_path) == {"a": second}
    assert json.loads((tmp_path / LOG_NAME).read_text().splitlines()[0])["reason"] == "x"


def test_mux_copies_packets_and_times(tmp_path: Path):
    images = render(tmp_path / "p.mp4")
    sound = render(tmp_path / "s.mp4", video=False, audio=True)
    assert muxed_suffix(images, sound) == ".mp4"
    assert muxed_suffix(images, tmp_path / "s.webm") == ".mkv"
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"both{suffix}"
        mux(images, sound, target)
        for kind, origin in (("video", images), ("audio", sound)):
            decoded = []
            for path in (origin, target):
                with av.open(str(path)) as container:
                    decoded.append([(frame.time, frame.to_ndarray()) for frame in container.decode(**{kind: 0})])
            assert len(decoded[0]) == len(decoded[1]) >= 16
            for (time, array), (other_time, other) in zip(*decoded, strict=True):
                assert time == pytest.approx(other_time, abs=0.0011)
                np.testing.assert_array_equal(array, other)
    with pytest.raises(ValueError, match="no audio stream"):
        mux(images, images, tmp_path / "x.mp4")
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(ValueError, match="cannot be put into one file"):
        mux(tmp_path / "text.mp4", sound, tmp_path / "y.mp4")


def test_command_end_to_end(server: VideoServer, video: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    server.files["/one.mp4"] = video
    metadata = tmp_path / "metadata"
    metadata.mkdir()
    names = ("One", "Two", "Three")
    (metadata / "RD_video_url.txt").write_text("".join(f"{n} {server.url(f'/{n.lower()}.mp4')}\n" for n in names))
    (metadata / "RD_annotion_time.txt").write_text("".join(f"{n}.mp4 00:00-00:05 00:06-00:07\n" for n in names))
    (tmp_path / "RD_Three.mp4").write_bytes(video)  # there already
    assert [target.name for target in targets(build_catalog("hdtf", tmp_path).rows)] == ["RD_One", "RD_Two"]
    arguments = ["download", "--dataset", "hdtf", "--source", str(tmp_path), "--sleep-s", "0", "--retries", "0"]
    arguments += ["--any-site", "--local-hosts", HERE]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / LOG_NAME}\n"
    assert "1 ok, 1 gone, 0 failed" in err
    assert [row.source for row in build_catalog("hdtf", tmp_path).rows] == [
        *("RD_One.mp4", "RD_One.mp4"),
        *("RD_Three.mp4", "RD_Three.mp4"),
        *(None, None),
    ]
    server.log.clear()
    assert main(arguments) == 0
    assert server.log == []  # nothing is fetched twice
    assert "1 known to be gone" in capfd.readouterr().err
