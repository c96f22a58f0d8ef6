"""Places of ranks by SLURM's variables, and the batch script of the documents with real ranks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tests.support.train_commands import SITE, toy
from train.launch.slurm import hosts, slurm_task

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "11",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_NODELIST": "gpu[08-09],login1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
}
"""Task of a step of three nodes."""


def test_the_place_of_a_task() -> None:
    task = slurm_task(STEP)
    assert task is not None and 10_000 <= task.port < 30_000
    assert (task.rank, task.world, task.local_rank, task.local_world, task.host) == (9, 11, 1, 3, "gpu08")
    # Another step of the job meets elsewhere, its tasks with each other.
    other = slurm_task(STEP | {"SLURM_STEP_ID": "1"})
    assert other is not None and other.port != task.port
    assert slurm_task(STEP | {"SLURM_PROCID": "0"}).port == task.port  # type: ignore[union-attr]
    # What is set already, by this code or by hand, is no contradiction if it says the same.
    assert slurm_task(STEP | task.variables()) == task
    chosen = slurm_task(STEP | {"MASTER_ADDR": "ib-gpu08", "MASTER_PORT": "5000"})
    assert chosen is not None and (chosen.host, chosen.port) == ("ib-gpu08", 5000)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # the batch script itself
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        STEP | {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "11", "RANK": "75", "WORLD_SIZE": "88"},
    ],
)
def test_no_rank_of_slurms(variables: dict[str, str]) -> None:
    assert slurm_task(variables) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": "0"}, "RANK is 0, and by SLURM's variables 9"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8, and by SLURM's variables 11"),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1"}, "each has a torchrun of its own"),
        ({"SLURM_PROCID": "11"}, "SLURM_PROCID is 11 and SLURM_STEP_NUM_TASKS 11"),
        ({"SLURM_LOCALID": "3"}, "this node has 3 tasks"),
        ({"SLURM_NODEID": "3"}, "does not go with"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "does not go with SLURM_STEP_NUM_TASKS 11"),
        ({"SLURM_STEP_TASKS_PER_NODE": "four"}, "no list of numbers"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x99999999)"}, "no list of numbers"),
        ({"SLURM_PROCID": "nine"}, "must be a number"),
        ({"SLURM_PROCID": "9" * 30}, "must be a number"),
        ({"SLURM_STEP_NODELIST": "node["}, "no list of hosts"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID is not set"),
    ],
)
def test_variables_that_contradict_each_other(changed: dict[str, str | None], said: str) -> None:
    variables = {name: value for name, value in (STEP | changed).items() if value is not None}
    with pytest.raises(ValueError, match=said) as error:
        slurm_task(variables)
    assert "\n" not in str(error.value)


# --- lists of hosts ---------------------------------------------------------------------------------------------------

_NAME = st.text("abcxyz-.", min_size=1, max_size=6)


@st.composite
def _entry(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Entry of a list in SLURM's notation, and the hosts that it means."""
    text, names = draw(_NAME), [""]
    names = [text]
    for _ in range(draw(st.integers(0, 2))):
        parts, numbers = [], []
        for _ in range(draw(st.integers(1, 3))):
            first, width = draw(st.integers(0, 120)), draw(st.integers(1, 4))
            last = first + draw(st.integers(0, 12))
            one = str(first).zfill(width)
            parts.append(one if first == last and draw(st.booleans()) else f"{one}-{str(last).zfill(width)}")
            numbers += [str(number).zfill(len(one)) for number in range(first, last + 1)]
        suffix = draw(st.one_of(st.just(""), _NAME))
        text += f"[{','.join(parts)}]{suffix}"
        names = [name + number + suffix for name in names for number in numbers]
    return text, names


@given(st.lists(_entry(), min_size=1, max_size=4))
def test_lists_of_hosts(entries: list[tuple[str, list[str]]]) -> None:
    assert hosts(",".join(text for text, _ in entries)) == [name for _, names in entries for name in names]


@given(st.text("ab0129[]-, ", max_size=12))
def test_any_text_is_a_list_of_hosts_or_refused(text: str) -> None:
    try:
        found = hosts(text)
    except ValueError as error:
        assert "no list of hosts" in str(error)
    else:
        assert found and all(name and not set(name) & set("[],") for name in found)


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "a[", "a]", "a[]", "a[1-]", "a[3-1]", "a[0-99999999]", "a[x]"])
def test_no_list_of_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="no list of hosts"):
        hosts(text)


# --- the batch script -------------------------------------------------------------------------------------------------

_SRUN = """#!/bin/bash
# Stands for srun: starts two tasks of one node with SLURM's variables; the worse of their exit statuses is its own.
while [ "${1#-}" != "$1" ]; do shift; done
echo "$@" >> "$CALLS"
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 \\
  SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 "$@" &
done
trap 'kill -USR1 $(jobs -p)' USR1
worst=0
for job in $(jobs -p); do
  while kill -0 "$job" 2>/dev/null; do wait "$job"; status=$?; done
  [ "$status" -gt "$worst" ] && worst=$status
done
exit "$worst"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment of a batch job whose srun and scontrol stand for SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(_SRUN)
    (folder / "scontrol").write_text('#!/bin/bash\necho "scontrol $@" >> "$CALLS"\n')
    (folder / "python").write_text(f'#!/bin/bash\nexec {ROOT}/.venv/bin/python "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    (tmp_path / "calls").touch()
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "PYTHONPATH": os.pathsep.join([SITE, str(ROOT)]),
        "RAY_ADDRESS": "",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_PROCID": "0",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


def submit(run: Path, cluster: dict[str, str], *options: object) -> subprocess.CompletedProcess[str]:
    """Run the batch script of the documents."""
    command = ["bash", str(ROOT / "docs" / "examples" / "train.sbatch"), *map(str, toy(run, *options))]
    return subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=400, check=False)


def test_the_batch_script_starts_ranks_and_asks_to_be_started_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Ended by the hours, it goes on from its checkpoint and comes to its end."""
    subprocess.run(["bash", "-n", str(ROOT / "docs" / "examples" / "train.sbatch")], check=True)
    run = tmp_path / "run"
    steps = ("--train.steps", 100_000, "--config.step-s", 0.02, "--train.parallel.threads", 1)
    done = submit(run, cluster, *steps, "--max-hours", 2 / 3600)
    assert done.returncode == 75, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert f"scontrol requeue {cluster['SLURM_JOB_ID']}" in calls and "--launch slurm" in calls
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert f"interrupted at step {step}; the same command continues" in done.stderr and "error" not in done.stderr
    # The same command, with fewer steps so that it ends.
    (tmp_path / "calls").write_text("")
    done = submit(run, cluster, *steps, "--train.steps", step + 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run / "pretrained_model")] and "scontrol" not in cluster["CALLS"]
    assert f"going on from step {step}" in done.stderr and "scontrol" not in (tmp_path / "calls").read_text()


@pytest.mark.slow
def test_a_task_that_fails_is_one_line_and_no_requeue(tmp_path: Path, cluster: dict[str, str]) -> None:
    bad = ["--config.bad-loss", *range(40), "--train.guard.abort-after", 2]
    done = submit(tmp_path / "run", cluster, *bad)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "scontrol" not in (tmp_path / "calls").read_text()


def test_contradicting_variables_are_one_line(tmp_path: Path, cluster: dict[str, str]) -> None:
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "train", *map(str, toy(tmp_path / "run"))]
    done = subprocess.run(
        command, cwd=ROOT, env=cluster | STEP | {"RANK": "3"}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.splitlines() == ["error: RANK is 3, and by SLURM's variables 9: unset RANK in the job's script"]
