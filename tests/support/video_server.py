"""Server of videos on this machine, with Range, that can break off, refuse, redirect, and send without end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

HERE = "127.0.0.1"


class VideoServer(ThreadingHTTPServer):
    """A server of files in memory; as a proxy it answers for every host itself."""

    daemon_threads = True

    def __init__(self, address: str = HERE) -> None:
        super().__init__((address, 0), Handler)
        self.files: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.kinds: dict[str, str] = {}
        """Path → its content type, where it is not that of the suffix."""
        self.redirects: dict[str, str] = {}
        """Path → where it is redirected to."""
        self.break_after: dict[str, list[int]] = {}
        """Path → bytes to send before the connection is cut, one number for each GET of the content."""
        self.endless: dict[str, tuple[bytes, float]] = {}
        """Path → what is sent again and again, and the pause in seconds after each; no length is announced."""
        self.endless_header: set[str] = set()
        """Paths for which a header is sent that never ends, a character now and then."""
        self.log: list[tuple[str, str | None]] = []
        """Path (as a proxy: address) and Range of each GET."""
        self.stopping = threading.Event()

    @classmethod
    @contextlib.contextmanager
    def running(cls, address: str = HERE) -> Iterator[VideoServer]:
        """A server that runs in a thread of its own."""
        with cls(address) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield server
            finally:
                server.stopping.set()
                server.shutdown()
                thread.join()

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"http://{self.server_address[0]}:{self.server_port}{path}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each GET of a path."""
        return [header for name, header in self.log if name == path]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: VideoServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, wanted = self.path, self.headers.get("Range")
        if body:
            self.server.log.append((path, wanted))
        if target := self.server.redirects.get(path):
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path in self.server.endless_header:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self._send_again(b"x", 0.1)
            return
        if path in self.server.endless:
            self._send_endless(*self.server.endless[path], body=body)
            return
        status = self.server.status.get(path, 200 if path in self.server.files else 404)
        content = self.server.files.get(path, b"") if status == 200 else b"no"
        start = 0
        if status == 200 and wanted:
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
        self.send_response(status)
        kind = self.server.kinds.get(path, "application/dash+xml" if path.endswith(".mpd") else "video/mp4")
        self.send_header("Content-Type", kind if status in (200, 206) else "text/plain")
        self.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            breaks = self.server.break_after.get(path)
            end = start + breaks.pop(0) if breaks else len(content)
            self.wfile.write(content[start:end])

    def _send_endless(self, block: bytes, pause_s: float, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.server.kinds.get(self.path, "video/mp4"))
        self.end_headers()
        if body:
            self._send_again(block, pause_s)

    def _send_again(self, block: bytes, pause_s: float) -> None:
        self.close_connection = True
        while not self.server.stopping.wait(pause_s):
            try:
                self.wfile.write(block)
            except OSError:  # the other side has gone
                return


def render(path: Path, *, video: bool = True, audio: bool = False) -> Path:
    """One second of noise at 25 fps, with a tone at 16 kHz if asked."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        images = output.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p") if video else None
        sound = output.add_stream("aac", rate=16_000, layout="mono") if audio else None
        if images:
            for _ in range(25):
                frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (64, 64, 3), np.uint8), format="rgb24")
                output.mux(images.encode(frame))
            output.mux(images.encode(None))
        if sound:
            tone = np.sin(np.arange(16_000) * 0.1).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    return path
