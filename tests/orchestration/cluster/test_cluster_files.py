"""The files that start real clusters: as far as they can be checked where no cloud, Kubernetes, SLURM or Docker is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "orchestration" / "cluster"
UID = 1000


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


# --- ray up -----------------------------------------------------------------------------------------------------------


def test_ray_up_file_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = manifest("aws.yaml")
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and "InstanceMarketOptions" not in head["node_config"]
    assert sum(kind["max_workers"] for kind in types.values()) >= config["max_workers"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"worker": 1}, schema)


def test_ray_accepts_the_file_and_fills_it_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(manifest("aws.yaml"))
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_ray_cluster_has_what_the_operator_needs() -> None:
    cluster = manifest("kuberay-cluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["rayVersion"] == pinned("ray")
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0" and len(workers) == len({group["groupName"] for group in workers})
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (head, *workers):
        # The operator passes them on as text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(cluster):
        names = {variable["name"] for variable in pod["containers"][0]["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= names


def test_ray_job_names_the_cluster_and_a_command_of_ours() -> None:
    job, cluster = manifest("kuberay-job.yaml"), manifest("kuberay-cluster.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].startswith("python -m orchestration ")


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_pods_have_no_rights_and_no_secrets_in_them(name: str) -> None:
    found = list(pods(manifest(name)))
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == UID
        for container in pod["containers"]:
            for variable in container["env"]:
                assert "TOKEN" not in variable["name"] or "valueFrom" in variable


# --- Docker -----------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, and what follows each."""
    text = "".join(line for line in (FOLDER / "Dockerfile").open() if not line.startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_image_is_built_from_the_pins_and_runs_without_rights() -> None:
    found = instructions()
    known = {"ARG", "FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert {name for name, _ in found} <= known
    kinds = [name for name, _ in found]
    # A build argument in FROM comes before it, all others after it.
    assert kinds.index("FROM") == 1 and ("ARG", "DEVICE=cpu") in found[2:]
    assert [text for name, text in found if name == "USER"] == ["worker"]
    assert any(f"--uid {UID} worker" in text for name, text in found if name == "RUN")
    install = next(text for name, text in found if "'.[" in text)
    assert "--constraint constraints.txt" in install and "--require-hashes" in install
    # Everything that it copies is there, and is let through to the build.
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for name, text in found:
        if name == "COPY":
            for source in [word for word in text.split()[:-1] if not word.startswith("--")]:
                assert (ROOT / source).exists()
                assert source == "." or f"!{source.split('/')[0]}" in ignored
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {line.removeprefix("!") for line in ignored}


def test_image_has_the_systems_libraries_that_are_checked() -> None:
    from talkinghead.runtime.native import NEEDED

    system = next(text for name, text in instructions() if "apt-get install" in text)
    assert set(NEEDED.values()) <= set(system.split())


@pytest.mark.parametrize(("device", "status"), [("cpu", 0), ("cuda", 0), ("tpu", 2)])
def test_image_takes_two_devices(device: str, status: int) -> None:
    """The shell of the layer that installs, with a pip that only notes how it is called."""
    install = next(text for name, text in instructions() if "'.[" in text)
    done = subprocess.run(
        ["sh", "-c", 'pip() { echo "$@"; }\n' + install],
        env={"DEVICE": device, "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert ("download.pytorch.org/whl/cpu" in done.stdout) == (device == "cpu")


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert found
    return found[1]


# --- SLURM ------------------------------------------------------------------------------------------------------------

# Stand-ins note how they are called, in order. That of srun says what `ray start` says, and stays until it is ended.
STANDINS = {
    "srun": """#!/bin/bash
for word in "$@"; do
  case $word in --output=*) log=${word#--output=} ;; --ntasks=*) tasks=${word#--ntasks=} ;; esac
done
echo "srun $*" >> "$CALLS"
sleep 0.3
for ((i = 0; i < tasks; i++)); do echo "Ray runtime started." >> "$log"; done
exec sleep 600
""",
    "scontrol": """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
[ "$1" = show ] && printf 'n1\\nn2\\nn3\\n'
exit 0
""",
    "python": """#!/bin/bash
echo "python $* address=$RAY_ADDRESS token=${#RAY_AUTH_TOKEN}" >> "$CALLS"
trap 'echo "python stopped" >> "$CALLS"; exit 1' TERM
[ -z "${LONG:-}" ] || { touch "$LONG"; while :; do sleep 0.1; done; }
exit 7
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a batch script on three nodes."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "8", "POLL_S": "0.05",
    }  # fmt: skip


def test_slurm_script_starts_head_then_nodes_then_the_job(slurm: dict[str, str]) -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sbatch"], check=True)
    command = ["bash", FOLDER / "slurm.sbatch", "shards", "--data", "/d"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    calls = Path(slurm["CALLS"]).read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["scontrol", "srun", "srun", "python"]
    assert "--nodelist=n1" in calls[1] and "ray start --head --block" in calls[1] and "--port=24711" in calls[1]
    assert "--exclude=n1" in calls[2] and "--ntasks=2" in calls[2] and "--address=n1:24711" in calls[2]
    assert calls[3] == "python -m orchestration shards --data /d address=n1:24711 token=64"


def test_slurm_script_asks_to_be_started_again_when_its_time_is_over(slurm: dict[str, str], tmp_path: Path) -> None:
    running = tmp_path / "running"
    script = subprocess.Popen(
        ["bash", FOLDER / "slurm.sbatch", "shards"], env=slurm | {"LONG": str(running)}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not running.exists():
        assert script.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(120) == 1
    assert Path(slurm["CALLS"]).read_text().splitlines()[-2:] == ["python stopped", "scontrol requeue 4711"]
