"""Local addresses are refused: named directly, by a name, after a redirect, and through a proxy."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.download import DownloadResult, DownloadSettings, Target, download
from ingest.network_guard import NetworkGuard, is_local
from tests.support.video_server import HERE, VideoServer, render

pytest.importorskip("yt_dlp", reason="needs the extra `download`")

OTHER = "127.0.0.2"  # all of 127.0.0.0/8 is this machine
FAST = DownloadSettings(sleep_s=0, backoff_s=0, retries=3, timeout_s=60, rate_limit_mib=0, any_site=True)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[VideoServer, VideoServer]]:
    """One server on each of the two addresses, with the same video."""
    content = render(tmp_path / "v.mp4").read_bytes()
    with VideoServer.running(HERE) as first, VideoServer.running(OTHER) as second:
        for server in (first, second):
            server.files["/v.mp4"] = content
        yield first, second


def _one(url: str, source: Path, settings: DownloadSettings = FAST) -> DownloadResult:
    (result,) = download([Target(name="clip", url=url)], source, settings).results
    return result


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_addresses_that_are_not_of_the_internet(address: str):
    assert is_local(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "142.250.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet(address: str):
    assert not is_local(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", [HERE, "localhost", "2130706433", "0x7f.1", "127.1"])
def test_a_local_address_is_refused_however_it_is_written(
    servers: tuple[VideoServer, VideoServer], tmp_path: Path, host: str
):
    result = _one(f"http://{host}:{servers[0].server_port}/v.mp4", tmp_path / "in")
    assert (result.status, "local network" in result.reason) == ("refused", True), result
    assert servers[0].log == []


def test_a_redirect_to_a_local_address_is_refused(servers: tuple[VideoServer, VideoServer], tmp_path: Path):
    first, second = servers
    settings = replace(FAST, local_hosts=(HERE,))
    first.redirects = {"/there.mp4": second.url("/v.mp4"), "/here.mp4": "/v.mp4"}
    result = _one(first.url("/there.mp4"), tmp_path / "in", settings)
    assert (result.status, f"{OTHER} is an address of the local network" in result.reason) == ("refused", True), result
    assert ([path for path, _ in first.log], second.log) == (["/there.mp4"], [])
    assert _one(first.url("/here.mp4"), tmp_path / "in", settings).status == "ok"


def test_a_manifest_that_names_a_local_address_is_refused(servers: tuple[VideoServer, VideoServer], tmp_path: Path):
    first, second = servers
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{second.url('/v.mp4')}\n#EXT-X-ENDLIST\n"
    first.files["/list.m3u8"] = playlist.encode()
    first.kinds["/list.m3u8"] = "application/vnd.apple.mpegurl"
    result = _one(first.url("/list.m3u8"), tmp_path / "in", replace(FAST, local_hosts=(HERE,)))
    assert (result.status, OTHER in result.reason, second.log) == ("refused", True, []), result
    result = _one(first.url("/list.m3u8"), tmp_path / "in", replace(FAST, local_hosts=(HERE, OTHER)))
    assert second.log, result


def test_a_proxy_of_the_users_does_not_reach_local_addresses_for_a_site(
    servers: tuple[VideoServer, VideoServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proxy, local = servers
    monkeypatch.setenv("http_proxy", proxy.url(""))
    # The proxy answers for the internet, and stands in the local network itself.
    site = "http://192.0.9.9"  # an address of the internet, which nothing is asked of here
    proxy.files[f"{site}/v.mp4"] = proxy.files["/v.mp4"]
    proxy.redirects[f"{site}/there.mp4"] = local.url("/v.mp4")
    proxy.redirects[f"{site}/proxy.mp4"] = proxy.url("/v.mp4")
    assert _one(f"{site}/v.mp4", tmp_path / "in").status == "ok"
    for path in ("there", "proxy"):
        result = _one(f"{site}/{path}.mp4", tmp_path / "in")
        assert (result.status, "local network" in result.reason) == ("refused", True), result
    asked = {path for path, _ in proxy.log}
    assert asked == {f"{site}/{path}.mp4" for path in ("v", "there", "proxy")}
    assert local.log == []


def test_it_ends_with_the_block_and_stops_programs(servers: tuple[VideoServer, VideoServer]):
    address = (HERE, servers[0].server_port)
    told: list[str] = []
    with NetworkGuard().active(told.append):
        with pytest.raises(PermissionError, match="local network"), socket.socket() as client:
            client.connect(address)
        with pytest.raises(urllib.error.URLError, match="local network"):
            urllib.request.urlopen(servers[0].url("/v.mp4"))
        with pytest.raises(PermissionError, match="starts no program"):
            subprocess.run([sys.executable, "-c", ""], check=True)
    assert len(told) == 2
    socket.create_connection(address).close()
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_an_unknown_host_is_an_error_before_anything_is_asked(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no-such-host\.invalid"):
        _one("http://example.org/", tmp_path / "in", replace(FAST, local_hosts=("no-such-host.invalid",)))
    assert not (tmp_path / "in").exists()
