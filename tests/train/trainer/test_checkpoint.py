"""Checkpoints: what is saved comes back, whatever is killed, cut off, damaged or full."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talkinghead.provenance import hash_file
from tests.support.small_disk import run_with_mounts
from tests.support.train_commands import ROOT
from tests.support.training_states import assert_equal, blank, make, state_of
from train.trainer.checkpoint_files import folder_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

DTYPES = torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8


def tensors() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    return st.builds(lambda shape, dtype: (torch.randn(shape) * 50).to(dtype), shapes, st.sampled_from(DTYPES))


def states() -> st.SearchStrategy[dict[str, Any]]:
    numbers = st.integers(-(2**60), 2**60) | st.booleans() | st.floats(allow_nan=False)
    names = st.text("abc._/é", min_size=1, max_size=5)
    inner = st.dictionaries(names, tensors() | numbers, max_size=3)
    return st.dictionaries(names, tensors() | numbers | inner, min_size=1, max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a run ü" / "checkpoints"


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=states())
def test_a_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    checkpoints = make(tmp_path_factory.mktemp("c") / "c", asynchronous=False)
    checkpoints.save(1, state)
    loaded = blank(state)
    checkpoints.load(1, loaded)
    assert_equal(loaded, state)


def test_files_have_the_names_that_are_read(folder: Path) -> None:
    """PyTorch's names, for each rank one after its number; a new version of it may choose others."""
    make(folder, asynchronous=False).save(1, state_of(1) | {"flag": True, "share": 0.5}, block=True)
    names = {path.name for path in (folder / folder_name(1)).iterdir()}
    assert names == {".metadata", ".metadata.sha256", "__0_0.distcp", "__0_0.distcp.sha256"}


def test_the_newest_stay_and_last_names_the_newest(folder: Path) -> None:
    checkpoints = make(folder, keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15, 15):
        checkpoints.save(step, state_of(step))
        checkpoints.poll()
    checkpoints.close()
    assert sorted(entry.name for entry in folder.iterdir()) == ["last", folder_name(10), folder_name(15)]
    assert (folder / "last").read_text() == "step-00000015\n"


def test_a_state_may_change_while_it_is_written(folder: Path) -> None:
    checkpoints = make(folder)
    state = state_of(7, size=3_000_000)
    expected = copy.deepcopy(state)
    checkpoints.save(7, state)
    state["weights"]["a"].fill_(-1.0)
    checkpoints.wait()
    loaded = blank(expected)
    checkpoints.load(7, loaded)
    assert_equal(loaded, expected)


def test_the_training_does_not_wait_for_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ready = os.fsync, threading.Event()

    def slow(descriptor: int) -> None:
        assert ready.wait(240)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    checkpoints = make(folder)
    checkpoints.save(1, state_of(1))
    checkpoints.poll()
    assert not (folder / folder_name(1)).exists()
    ready.set()
    checkpoints.save(2, state_of(2))
    assert checkpoints.latest() == 1, "the next one waited for it"
    checkpoints.wait()
    assert checkpoints.latest() == 2


def test_what_a_killed_run_left_is_no_checkpoint(folder: Path) -> None:
    make(folder).save(3, state_of(3), block=True)
    cut = folder / f".{folder_name(4)}.tmp-12345678"
    cut.mkdir()
    (cut / "__0_0.distcp").write_bytes(b"half")
    (folder / f".last.tmp-{'0' * 8}").write_text("step-0")
    (folder / "last").unlink()
    assert make(folder).latest() == 3
    assert [entry.name for entry in folder.iterdir()] == [folder_name(3)]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", ".metadata.sha256", "__0_0.distcp.sha256"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "remove with its hash"])
def test_damage_is_said_and_the_older_one_is_good(folder: Path, file: str, harm: str) -> None:
    checkpoints = make(folder)
    for step in (5, 10):
        checkpoints.save(step, state_of(step), block=True)
    target = folder / folder_name(10) / file
    data = bytearray(target.read_bytes())
    if harm.startswith("remove"):
        target.unlink()
        if harm != "remove":
            target.with_name(f"{file}.sha256").unlink(missing_ok=True)
    else:
        data[len(data) // 2] ^= 1
        target.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    assert checkpoints.latest() == 10, "nothing is passed over silently"
    with pytest.raises(ValueError, match=r"step-00000010 is damaged: .*delete that folder to go on from step 5"):
        checkpoints.load(10, blank(state_of(10)))
    for entry in (folder / folder_name(10)).iterdir():
        entry.unlink()
    (folder / folder_name(10)).rmdir()
    again = make(folder)
    loaded = blank(state_of(5))
    assert again.latest() == 5
    again.load(5, loaded)
    assert_equal(loaded, state_of(5))


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    checkpoints = make(folder)
    checkpoints.save(1, state_of(1), block=True)
    more = blank(state_of(1)) | {"head": torch.zeros(2)}
    less = {"step": 0}
    for state, said in (
        (more, "lacks head"),
        (less, r"has weights\.a"),
        (blank(state_of(1, size=9)), r"its weights\.a is float32 \[1000\]"),
    ):
        with pytest.raises(ValueError, match=said):
            checkpoints.load(1, state)


def test_a_checkpoint_runs_no_code(folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    checkpoints = make(folder)
    checkpoints.save(1, state_of(1), block=True)
    file = folder / folder_name(1) / ".metadata"
    file.write_bytes(pickle.dumps(Attack()))
    file.with_name(".metadata.sha256").write_text(hash_file(file))
    with pytest.raises(ValueError, match="mkdir"):
        checkpoints.load(1, blank(state_of(1)))
    assert not (tmp_path / "owned").exists()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from tests.support.training_states import assert_equal, blank, make, state_of
torch.set_num_threads(1)
folder, times, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(5)
def write():
    checkpoints = make(folder, keep=2, asynchronous=chance.random() < 0.5)
    step = checkpoints.latest() or 0
    while True:
        step += 1
        checkpoints.save(step, state_of(step, 200_000))
killed = at = 0
partial = 0
# How long a checkpoint takes, as busy as this machine is: most kills come while one of the first few is written.
started = time.monotonic()
make(folder.parent / "other").save(1, state_of(1, 200_000), block=True)
took = time.monotonic() - started
while killed < times or at <= 3 or partial <= 3:
    before = at
    child = os.fork()
    if child == 0:
        write()
    time.sleep(took * chance.uniform(0.1, 4.0))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += 1
    partial += any(folder.glob(".step-*"))
    checkpoints = make(folder)
    newest = checkpoints.latest()
    if newest is not None:
        assert newest >= at, (newest, at)
        at = newest
        loaded = blank(state_of(at, 200_000))
        checkpoints.load(at, loaded)
        assert_equal(loaded, state_of(at, 200_000))
    assert not list(folder.glob(".*"))
    took *= 1.1 if at == before else 1.0  # it may have become busier
print(at, partial)
"""


def test_sigkill_at_any_moment_leaves_the_newest_whole(folder: Path) -> None:
    """20 kills or more, until some of them came while a checkpoint was being written, and some later."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), "20"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    newest, partial = map(int, done.stdout.split())
    assert newest > 3 and partial > 3, done.stdout


FULL = """
import sys
from pathlib import Path
import torch
from tests.support.training_states import assert_equal, blank, make, state_of
folder = Path(sys.argv[1])
for asynchronous in (True, False):
    checkpoints = make(folder, asynchronous=asynchronous)
    checkpoints.save(1, state_of(1, 300_000), block=True)
    try:
        checkpoints.save(2, state_of(2, 300_000))
        checkpoints.wait()
    except OSError as error:
        print(error.errno, error.strerror)
    assert not list(folder.glob(".*")), "what was written of it is gone"
    loaded = blank(state_of(1, 300_000))
    assert checkpoints.latest() == 1
    checkpoints.load(1, loaded)
    assert_equal(loaded, state_of(1, 300_000))
"""


def test_a_full_disk_is_one_line_and_the_older_one_stays(tmp_path: Path) -> None:
    """On a real file system of 2 MB."""
    mount = tmp_path / "small ü"
    mount.mkdir()
    code = f"mount -t tmpfs -o size=2000k none '{mount}' || exit 77; exec '{sys.executable}' -c \"$CODE\" '{mount}/c'"
    done = run_with_mounts(code, env={"CODE": FULL})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and len(set(lines)) == 1, done.stdout
    assert "28 cannot write the checkpoint of step 2" in lines[0] and "No space left on device" in lines[0]
    assert "the one of step 1 is whole" in lines[0]
