"""Checkpoints: what is saved comes back, whatever is killed, cut off, damaged or full."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import shutil
import signal
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
from train.run.run_folder import folder_name
from train.trainer import checkpoint_files
from train.trainer.checkpoint import DamagedCheckpoint
from train.trainer.checkpoint_files import write_hashed
from train.trainer.retention import Judged

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
    files = {".metadata", "__0_0.distcp", "checkpoint.json"}
    assert names == files | {f"{name}.sha256" for name in files}


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


def test_milestones_and_the_best_stay(folder: Path) -> None:
    """And those whose validation is to come, until it is known that they are not the best."""
    checkpoints = make(folder, keep=1, keep_every=20, best="validation/loss")
    figures: dict[int, float] = {}
    for step, loss in ((5, 3.0), (10, 1.0), (15, 2.0), (20, 4.0), (25, 5.0), (30, 6.0)):
        checkpoints.save(
            step, state_of(step), judged=Judged(figures=dict(figures), pending=frozenset([step - 5, step]))
        )
        figures[step] = loss
    checkpoints.wait()
    assert checkpoints.folder.steps() == [10, 20, 25, 30]
    checkpoints.retain(Judged(figures=figures))
    assert checkpoints.folder.steps() == [10, 20, 30]
    checkpoints.save(35, state_of(35), judged=Judged(figures=figures))
    checkpoints.retain(Judged(figures=figures | {35: 0.0}))
    checkpoints.close()
    assert checkpoints.folder.steps() == [10, 20, 35], "nothing goes while one is being written, and the next does it"


# --- damage -----------------------------------------------------------------------------------------------------------


def harmed(file: Path, harm: str) -> None:
    """Damage a file of a checkpoint."""
    data = bytearray(file.read_bytes())
    if harm.startswith("remove"):
        file.unlink()
        if harm != "remove":
            file.with_name(f"{file.name}.sha256").unlink(missing_ok=True)
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: len(data) // 2] if harm == "cut" else data)


FILES = ["__0_0.distcp", ".metadata", "checkpoint.json", ".metadata.sha256", "__0_0.distcp.sha256"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "remove with its hash"])
def test_a_damaged_one_is_set_aside_loudly_and_the_one_before_is_taken(
    folder: Path, file: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10):
        make(folder, run="1" * 32).save(step, state_of(step), block=True)
    damaged = folder / folder_name(10)
    harmed(damaged / file, harm)
    if (file, harm) == ("checkpoint.json", "remove with its hash"):
        return  # that is one of older code, and is good
    again = make(folder, run="1" * 32)
    with pytest.raises(DamagedCheckpoint, match="step-00000010 is damaged: ") as caught:
        again.load(10, blank(state_of(10)))
    loaded = blank(state_of(5))
    assert again.latest() == 10, "nothing is passed over silently"
    assert again.restore(loaded) == 5
    assert_equal(loaded, state_of(5))
    # Renamed, with all that is in it; and said.
    names = {entry.name for entry in folder.iterdir()}
    assert names == {"last", folder_name(5), f"damaged-{folder_name(10)}"}
    assert (folder / "last").read_text() == f"{folder_name(5)}\n"
    (found,) = again.set_aside
    assert found.folder == f"damaged-{folder_name(10)}" and found.defect == caught.value.defect
    assert file.removesuffix(".sha256") in found.defect
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == (
        f"checkpoint {folder_name(10)} is damaged ({found.defect}): it is called damaged-{folder_name(10)} now, and the"
        " training goes on from step 5"
    )
    # The step comes again, may be damaged again, and nothing of it is lost.
    again.save(10, state_of(10), block=True)
    harmed(folder / folder_name(10) / ".metadata", "cut")
    assert make(folder).restore(blank(state_of(5))) == 5
    assert (folder / f"damaged-{folder_name(10)}-1").is_dir() and (folder / f"damaged-{folder_name(10)}").is_dir()


def test_several_damaged_ones_are_passed_over(folder: Path) -> None:
    checkpoints = make(folder, keep=4)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state_of(step), block=True)
    for step in (3, 4):
        harmed(folder / folder_name(step) / ".metadata", "flip")
    again, loaded = make(folder), blank(state_of(1))
    assert again.restore(loaded) == 2
    assert_equal(loaded, state_of(2))
    assert [found.folder[-1] for found in again.set_aside] == ["4", "3"]


def test_where_all_are_damaged_nothing_is_renamed_and_nothing_begins_anew(folder: Path) -> None:
    checkpoints = make(folder)
    for step in (5, 10):
        checkpoints.save(step, state_of(step), block=True)
        harmed(folder / folder_name(step) / "__0_0.distcp", "flip")
    for _ in range(2):
        again = make(folder)
        with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(the newest: step-00000010, __0_0"):
            again.restore(blank(state_of(5)))
        assert again.folder.steps() == [5, 10]
    # Even where the user has removed those that were not set aside.
    for step in (5, 10):
        (folder / folder_name(step)).rename(folder / f"damaged-{folder_name(step)}")
    with pytest.raises(ValueError, match="only damaged ones that were set aside"):
        make(folder)


def test_a_fault_of_the_machine_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that fails for a while would cost all that was trained since the older checkpoint."""
    for step in (5, 10):
        make(folder).save(step, state_of(step), block=True)
    again = make(folder)

    def stale(stream: Any) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint_files, "hash_stream", stale)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        again.restore(blank(state_of(5)))
    assert folder_name(10) in caught.value.filename
    assert again.folder.steps() == [5, 10]


# --- whose it is ------------------------------------------------------------------------------------------------------

RUN, OTHER = "1" * 32, "2" * 32


def test_a_checkpoint_of_another_run_is_named_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    """Neither trained from nor removed with our own old ones."""
    make(tmp_path / "other", run=OTHER).save(3, state_of(3), block=True)
    checkpoints = make(folder, run=RUN)
    for step in (2, 4):
        checkpoints.save(step, state_of(step), block=True)
    shutil.copytree(tmp_path / "other" / folder_name(3), folder / folder_name(3))
    with pytest.raises(ValueError, match=f"step-00000003 is of another run .{OTHER}; this one is {RUN}.: take it out"):
        make(folder, run=RUN)
    shutil.move(folder / folder_name(3), folder / folder_name(9))
    with pytest.raises(ValueError, match="is of another run"):
        make(folder, run=RUN)
    assert checkpoints.folder.steps() == [2, 4, 9]


def test_a_checkpoint_under_another_name_is_not_taken_for_that_step(folder: Path) -> None:
    make(folder, run=RUN).save(3, state_of(3), block=True)
    (folder / folder_name(3)).rename(folder / folder_name(7))
    with pytest.raises(ValueError, match="step-00000007 is of step 3: give it back its name"):
        make(folder, run=RUN)


def test_one_of_older_code_goes_on(folder: Path) -> None:
    """It says nothing about itself; and so does a run of older code, whose checkpoints name none."""
    make(folder).save(1, state_of(1), block=True)
    for name in ("checkpoint.json", "checkpoint.json.sha256"):
        (folder / folder_name(1) / name).unlink()
    checkpoints, loaded = make(folder, run=RUN), blank(state_of(1))
    assert checkpoints.restore(loaded) == 1
    assert_equal(loaded, state_of(1))
    checkpoints.save(2, state_of(2), block=True)
    assert make(folder).restore(loaded) == 2 == make(folder, run=RUN).restore(loaded)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"format": 2, "step": 1, "run": null}',
        b'{"format": 1, "step": 1, "run": "me"}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_what_it_says_about_itself_may_be_a_strangers(folder: Path, content: bytes) -> None:
    make(folder).save(1, state_of(1), block=True)
    write_hashed(folder / folder_name(1) / "checkpoint.json", content)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint\.json"):
        make(folder, run=RUN).load(1, blank(state_of(1)))


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


AT_EVERY_CHANGE = """
import os, sys
from pathlib import Path
import torch
from tests.support.dying_calls import die_at
from tests.support.training_states import make, state_of
torch.set_num_threads(1)
for number in range(1, 200):
    folder = Path(sys.argv[1]) / str(number)
    for step in (10, 20):
        make(folder, keep=2).save(step, state_of(step), block=True)
    if not (child := os.fork()):
        checkpoints = make(folder, keep=1, keep_every=10, asynchronous=False)
        die_at(number, "rename", "replace", "unlink", "rmdir", "mkdir", "fsync")
        checkpoints.save(25, state_of(25))
        checkpoints.save(30, state_of(30))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(number, status, flush=True)
    if status == 0:
        break
"""


def test_sigkill_at_every_single_change_loses_no_checkpoint(tmp_path: Path) -> None:
    """Killed while one is written, renamed and named, and while an older one is removed, at every call that does it."""
    command = [sys.executable, "-c", AT_EVERY_CHANGE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    ends = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(ends) > 30 and ends[-1][1] == 0, done.stderr
    assert all(status == -signal.SIGKILL for _, status in ends[:-1])
    newest: list[int] = []
    for number, _ in ends:
        folder = tmp_path / str(number)
        again = make(folder)
        steps = again.folder.steps()
        assert {10, 20} <= set(steps) and not list(folder.glob(".*"))
        for step in steps:
            loaded = blank(state_of(step))
            again.load(step, loaded)
            assert_equal(loaded, state_of(step))
        newest.append(steps[-1])
    assert newest == sorted(newest) and set(newest) == {20, 25, 30}, "never less than before"
    assert again.folder.steps() == [10, 20, 30]


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
