"""One policy for every `python -m …`: 0 done, 1 it ran and failed, 2 the request cannot be met; and one error line."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from talkinghead.runtime.command_line import (
    AGAIN,
    EXIT_STATUS,
    GOES_ON,
    Ending,
    Incomplete,
    end_by_policy,
    run_command_line,
)
from talkinghead.runtime.errors import MachineError
from tests.support.mains import file_that_never_opens, interrupted, make_unreadable
from tests.support.paths import ROOT
from tests.support.small_disk import run_with_mounts

MAINS = (
    "annotate",
    "infer",
    "ingest",
    "ingest.sample",
    "orchestration",
    "orchestration.bench",
    "orchestration.cluster",
    "shards",
    "train",
)


@pytest.fixture(autouse=True)
def _this_process_stays() -> Iterator[None]:
    """Restores the environment and the signal handler: mains set them, as if the process were their own."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Wrong places, by the way in which they are wrong."""
    for name in ("videos", "empty"):
        (tmp_path / name).mkdir()
    for file in ("videos/a.mp4", "file"):
        (tmp_path / file).touch()
    return {name: tmp_path / name for name in ("videos", "empty", "file", "missing", "new")}


def call(main: str, arguments: list[str]) -> int:
    return importlib.import_module(f"{main}.__main__").main(arguments)


def test_every_main_is_in_these_tests_and_makes_no_policy_of_its_own() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    files = [file for package in packages for file in (ROOT / package).rglob("__main__.py")]
    assert {".".join(file.parent.relative_to(ROOT).parts) for file in files} == set(MAINS)
    for file in files:
        text = file.read_text()
        assert "talkinghead.runtime.command_line" in text, file
        assert "except" not in text and "tyro.cli" not in text and "SubcommandApp" not in text, file


@pytest.mark.parametrize("main", MAINS)
def test_help_says_the_policy_and_a_wrong_option_is_refused(main: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(main, ["--help"])
    out, _ = capfd.readouterr()
    assert ended.value.code == 0 and out.startswith(f"usage: python -m {main} ")
    assert " ".join(EXIT_STATUS.split()) in " ".join(out.split())
    with pytest.raises(SystemExit) as ended:
        call(main, ["--no-such-option"])
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and out == "" and "no-such-option" in err


REFUSED = [
    ("annotate", "models", "TALKINGHEAD_MODELS names {empty}"),
    ("infer", "convert --weights {missing} -o {new}", "{missing}"),
    ("infer", "evaluate --audio2mesh {missing} --data {missing}", "{missing}"),
    ("infer", "doctor --weights {videos} --seconds 0", "--seconds"),
    ("ingest", "catalog --dataset folder --source {missing} --data {new}", "{missing}"),
    ("ingest", "catalog --dataset hdtf --source {videos} --data {new}", "no hdtf metadata in {videos}"),
    ("ingest", "catalog --dataset folder --source {videos} --data {file}", "{file}"),
    ("ingest", "sample {file}", "{file}"),
    ("ingest.sample", "-o {file}", "{file}"),
    ("orchestration", "report --data {missing}", "there is no {missing}/DATASET.json: run make shards"),
    ("orchestration", "ingest --data {new}", "SOURCE is missing"),
    ("orchestration", "ingest --data {file} --source {videos}", "cannot write to {file}"),
    ("orchestration", "annotate --data {missing}", "nothing is ingested"),
    ("orchestration.bench", "-o {file}/bench.json", "{file}"),
    ("shards", "verify --data {missing}", "there is no {missing}/DATASET.json: run make shards"),
    ("shards", "ls --data {missing}", "there is no {missing}/DATASET.json: run make shards"),
    ("shards", "export-aniportrait --data {missing} --out {new}", "there is no {missing}/DATASET.json"),
    ("train", "overview --run {missing}", "{missing}"),
    ("train", "audio2mesh huge", "there is no recipe 'huge'"),
    ("train", "audio2mesh tiny --data {missing} --run {new}", "there is no {missing}/DATASET.json: run make shards"),
]
"""Requests that cannot be met: main, arguments, part of the error line."""


@pytest.mark.parametrize(("main", "arguments", "said"), REFUSED)
def test_what_cannot_be_met_is_status_2(
    main: str, arguments: str, said: str, places: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    if main == "annotate":
        os.environ["TALKINGHEAD_MODELS"] = str(places["empty"])
    assert call(main, arguments.format(**places).split()) == 2
    assert_one_line(capfd, said.format(**places), hint=None)


def assert_one_line(capfd: pytest.CaptureFixture[str], said: str, *, hint: str | None) -> None:
    """Check that stdout is empty, and that the last line on stderr is the one error line, with the hint or without."""
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err, err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:], err
    line = err.splitlines()[-1]
    assert said in line and line.startswith("error: ")
    assert line.endswith(f"; {hint}") if hint else "run the same command again" not in line


UNREADABLE = [
    ("annotate", "models", "models/face_landmarker.task", AGAIN),
    (
        "ingest",
        "catalog --dataset hdtf --source {root} --data {root}/new --follow-links",
        "RD_annotion_time.txt",
        GOES_ON,
    ),
    ("orchestration", "report --data {root}", "DATASET.json", GOES_ON),
    ("orchestration", "ingest --data {root}/new --source {root}/videos --follow-links", "videos/a.mp4", GOES_ON),
    ("shards", "verify --data {root}", "DATASET.json", AGAIN),
    ("shards", "ls --data {root}", "DATASET.json", AGAIN),
    ("train", "overview --run {root}", "config.json", GOES_ON),
    ("train", "audio2mesh tiny --data {root} --run {root}/new", "DATASET.json", GOES_ON),
    ("infer", "convert --audio2mesh {root}/audio2mesh.pt -o {root}/new", "audio2mesh.pt", AGAIN),
]
"""Commands on a disk that fails: main, arguments, the file whose reading is an I/O error, and the hints."""


@pytest.mark.parametrize(("main", "arguments", "file", "advice"), UNREADABLE)
def test_a_disk_that_fails_is_status_1(
    main: str, arguments: str, file: str, advice: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if main == "annotate":
        os.environ["TALKINGHEAD_MODELS"] = str(tmp_path / "models")
    make_unreadable(tmp_path / file)
    assert call(main, arguments.format(root=tmp_path).split()) == 1
    assert_one_line(capfd, "Input/output error", hint=advice.mended)
    assert not list(tmp_path.rglob("quarantine"))


def test_a_full_disk_is_status_1(tmp_path: Path) -> None:
    """Commands that write early, on a real file system without a free byte."""
    mount = tmp_path / "full"
    mount.mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    commands = (
        f"ingest catalog --dataset folder --source {tmp_path}/videos --data {mount}/data",
        f"ingest sample {mount}/sample",
        f"orchestration ingest --source {tmp_path}/videos --data {mount}/data",
    )
    code = f"mount -t tmpfs -o size=64k none '{mount}' || exit 77\nmkdir '{mount}/data' '{mount}/sample'\n"
    code += f"head -c 60k /dev/zero > '{mount}/fill'; cat /dev/zero > '{mount}/rest' 2> /dev/null\n"
    code += "\n".join(f"'{sys.executable}' -m {command}; echo \"status $?\"" for command in commands)
    done = run_with_mounts(code)
    assert done.stdout.split() == ["status", "1"] * 3, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3 and "Traceback" not in done.stderr, done.stderr
    for line in lines:
        assert "No space left on device" in line and "run the same command again when it is mended" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "file", "advice"),
    [
        ("shards verify --data {root}", "DATASET.json", AGAIN),
        ("orchestration report --data {root}", "DATASET.json", GOES_ON),
        pytest.param("train overview --run {root}", "config.json", GOES_ON, marks=pytest.mark.slow),
        (
            "ingest catalog --dataset vfhq --source {root} --metadata {root}/m --data {root}/new",
            "m/Clip+x.txt",
            GOES_ON,
        ),
    ],
)
def test_an_interruption_is_status_1(arguments: str, file: str, advice: Any, number: int, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    with file_that_never_opens(tmp_path / file) as (opening, environment):
        status, out, err = interrupted(arguments.format(root=tmp_path).split(), opening, number, env=environment)
    assert (status, out, err) == (1, "", f"interrupted; {advice.interrupted}\n")


def test_a_sample_and_a_bench_are_interrupted(tmp_path: Path) -> None:
    """Interruptions of infer, in the middle of a video, are tested with its commands."""
    for arguments, begun in (
        (f"ingest.sample -o {tmp_path}/sample", "sample"),
        (f"orchestration.bench -o {tmp_path}/bench.json", "bench.log"),
    ):
        status, out, err = interrupted(arguments.split(), (tmp_path / begun).exists, signal.SIGTERM)
        assert (status, out, err.splitlines()[-1]) == (1, "", f"interrupted; {AGAIN.interrupted}")
        assert "Traceback" not in err


def test_an_interruption_in_the_middle_of_an_exec_is_status_1(tmp_path: Path) -> None:
    """Modules are imported by commands, and dataclasses are made by exec(): CPython would end by SIGINT (status -2)."""
    (tmp_path / "main_of_mine.py").write_text(
        "import sys; from talkinghead.runtime.command_line import run_command_line\n"
        "def command() -> None:\n    'Does nothing.'\n    exec('raise KeyboardInterrupt')\n"
        "sys.exit(run_command_line(command, [], prog='it'))"
    )
    done = subprocess.run(
        [sys.executable, "-m", "main_of_mine"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"interrupted; {AGAIN.interrupted}\n")


def test_a_download_is_interrupted(tmp_path: Path) -> None:
    """The proxy takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        held: list[socket.socket] = []

        def asked() -> bool:
            try:
                held.append(listener.accept()[0])
            except TimeoutError:
                return False
            return True

        environment = {"https_proxy": proxy, "no_proxy": "", "TALKINGHEAD_MODELS": "", "XDG_CACHE_HOME": str(tmp_path)}
        status, out, err = interrupted(["annotate", "models"], asked, signal.SIGTERM, env=environment)
    for connection in held:
        connection.close()
    assert (status, out, err.splitlines()[-1]) == (1, "", f"interrupted; {AGAIN.interrupted}")


# --- the result -------------------------------------------------------------------------------------------------------


def talk(number: int = 3) -> str:
    """Say something on every way to stdout.

    Args:
        number: Number in the result.
    """
    print("from Python")
    os.write(1, b"from a library\n")
    subprocess.run(["sh", "-c", "echo from a process"], check=True)
    return f"result {number}"


def find() -> Incomplete:
    """Find problems."""
    return Incomplete("looked at 5", "2 problems: mend them")


def stay_silent() -> None:
    """Have no result."""


def run(*arguments: str) -> int:
    return run_command_line((talk, find, stay_silent), list(arguments), prog="python -m test", about="A test.")


def test_only_the_result_is_on_stdout(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", os.fdopen(1, "w", closefd=False))
    assert run("talk", "--number", "7") == 0
    out, err = capfd.readouterr()
    assert out == "result 7\n" and set(err.splitlines()) == {"from Python", "from a library", "from a process"}
    assert run("stay-silent") == 0
    assert capfd.readouterr() == ("", "")
    assert run_command_line(talk, ["--number", "8"], prog="python -m talk") == 0
    assert capfd.readouterr().out == "result 8\n"


def test_a_result_with_problems_is_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("find") == 1
    assert capfd.readouterr() == ("looked at 5\n", "error: 2 problems: mend them\n")


def test_file_names_come_out_as_they_are(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    name = os.fsdecode(b"/clips/\xff.mp4")
    assert run_command_line(lambda: name, [], prog="python -m test", about="A test.") == 0
    assert capfdbinary.readouterr().out == b"/clips/\xff.mp4\n"


@pytest.mark.parametrize("main", [["orchestration", "quarantine", "--data", "."], ["ingest", "sample", "build/none"]])
def test_a_full_disk_takes_no_result(main: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("ingest.sample.make_sample", lambda out: out)
    stdout = os.dup(1)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    try:
        status = call(main[0], main[1:])
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(full)
    assert status == 1
    assert_one_line(capfd, "cannot write the result to stdout: No space left on device", hint=GOES_ON.mended)


def test_nobody_reads_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    stdout = os.dup(1)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    try:
        status = run("find")
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(writer)
    assert status == 1
    assert capfd.readouterr() == ("", "error: 2 problems: mend them\n")


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("--fps is 0, must be positive"), 2, "error: --fps is 0, must be positive\n"),
        (ValueError("2 keys differ\na\nb"), 2, "a\nb\nerror: 2 keys differ\n"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), 2, "error: a.mp4: No such file or directory\n"),
        (
            OSError(28, "No space left on device", "a.mp4"),
            1,
            f"error: a.mp4: No space left on device; {AGAIN.mended}\n",
        ),
        (MachineError("a rank was lost"), 1, f"error: a rank was lost; {AGAIN.mended}\n"),
        (MemoryError(), 1, f"error: not enough memory; {AGAIN.mended}\n"),
        (KeyboardInterrupt(), 1, f"interrupted; {AGAIN.interrupted}\n"),
    ],
)
def test_errors(error: BaseException, status: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert end_by_policy(fail, advice=AGAIN) == status
    assert capfd.readouterr() == ("", said)


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        end_by_policy(lambda: 1 // 0, advice=AGAIN)


def test_a_main_may_explain_its_own_errors(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise LookupError("rank 3")

    def explain(error: BaseException) -> Ending | None:
        return Ending(1, f"error: lost {error}") if isinstance(error, LookupError) else None

    assert end_by_policy(fail, advice=AGAIN, explain=explain) == 1
    assert capfd.readouterr().err == "error: lost rank 3\n"
