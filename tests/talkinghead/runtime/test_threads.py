"""How threads wait is settled in every process before PyTorch is imported, and what the user set himself stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from orchestration.cluster import WORKER_VARIABLES
from talkinghead.runtime.ray_cluster import worker_environment
from talkinghead.runtime.threads import WAIT_VARIABLES
from tests.support.paths import ROOT

UNSETTLED = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
"""The environment of somebody who has set nothing."""

# Imports a module; says how threads wait when PyTorch is looked for, and at the end.
TRACE = """
import importlib, os, sys

class Trace:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch:", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Trace())
importlib.import_module(sys.argv[1])
print("end:", os.environ.get("OMP_WAIT_POLICY"))
"""

# A second thread gets something to do now and then; prints which part of the time this process has computed.
IDLE = """
import time, talkinghead, torch

torch.set_num_threads(2)
numbers = torch.ones(1 << 17)
numbers.add_(1)
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(200):
    numbers.add_(1)
    time.sleep(0.002)
print((time.process_time() - cpu) / (time.perf_counter() - wall))
"""


def run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", *command],
        cwd=ROOT,
        env=UNSETTLED | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return done.stdout


def mains() -> list[str]:
    """What runs by `python -m`, and what the ranks of a training and Ray's workers run."""
    found = ["train.launch.worker", "train.launch.ray_train", "orchestration.units.unit"]
    for folder in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        for path in sorted(folder.rglob("*.py")):
            if re.search(r'^if __name__ == "__main__"', path.read_text(), re.M):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "PASSIVE"),
        ({"OMP_NUM_THREADS": "3"}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "5000"}, None),
        ({"KMP_BLOCKTIME": "1"}, None),
    ],
)
def test_waits_are_passive_unless_the_user_says_how(given: dict[str, str], policy: str | None) -> None:
    names = [*WAIT_VARIABLES, "OMP_NUM_THREADS"]
    code = f"import os, talkinghead; print({{name: os.environ.get(name) for name in {names}}})"
    others = {name: value for name, value in UNSETTLED.items() if name in names}
    expected = dict.fromkeys(names) | others | given | {"OMP_WAIT_POLICY": policy}
    assert run(code, **given) == f"{expected}\n"


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("orchestration.bench.") else name
        for name in mains()
    ],
)
def test_every_main_has_settled_it_before_pytorch_is_imported(module: str) -> None:
    said = run(TRACE, module).splitlines()
    assert said[-1] == "end: PASSIVE"
    assert {line for line in said if line.startswith("torch: ")} <= {"torch: PASSIVE"}


def test_so_have_the_tests() -> None:
    assert any(name in os.environ for name in WAIT_VARIABLES)


def test_workers_of_a_ray_cluster_wait_as_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert worker_environment({})["env_vars"] == {"GOMP_SPINCOUNT": "7"}
    assert (
        worker_environment(WORKER_VARIABLES)["env_vars"].items()
        >= {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "1"}.items()
    )


def test_a_thread_without_work_leaves_its_core_to_others() -> None:
    """For real: PyTorch's OpenMP has heard of it. Spinning, the thread would compute all of the time."""
    assert float(run(IDLE)) < 0.5  # 0.03 on a quiet machine, up to 0.2 on a busy one, and 1.0 of a thread that spins
