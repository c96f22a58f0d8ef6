"""Trainings whose RUN is on an object store, as users start them."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files.storage import Storage
from tests.support.object_store import LocalS3
from tests.support.store_faults import answering, refusing_conditions, without_conditions
from tests.support.train_commands import Command, run_train, start_train, toy, wait_for, weights_of
from train.run.run_store import RunStore

OPTIONS = ("--train.checkpoint.every", 2, "--train.log.every", 1)
ASYNCHRONOUS = "--train.checkpoint.asynchronous"


class Stored:
    """A run on a store, and machines that each have working folders of their own."""

    def __init__(self, server: LocalS3, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.uri = server.uri(f"trainings/{folder.name}")
        self.storage = Storage(self.uri)
        self.machine = "one"
        self._looking = RunStore(self.uri)

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment | {"TALKINGHEAD_RUNS": str(self.folder / "machines" / self.machine)}

    @property
    def working(self) -> Path:
        """The working folder of the machine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TALKINGHEAD_RUNS", self.environment["TALKINGHEAD_RUNS"])
            return RunStore(self.uri).folder

    def start(self, name: str, *options: object, **environment: str) -> Command:
        arguments = toy(self.uri, *OPTIONS, *options)  # type: ignore[arg-type]
        return start_train(self.folder / name, *arguments, **(self.environment | environment))

    def run(self, name: str, *options: object, **environment: str) -> Command:
        command = self.start(name, *options, **environment)
        command.wait()
        return command

    def steps(self) -> list[int]:
        """Steps that count."""
        time.sleep(0.2)  # the server is in this process, and must not only be asked for this
        return self._looking.listing().steps()

    def weights(self) -> str:
        return hashlib.sha256(self.storage.read("pretrained_model/weights.safetensors")).hexdigest()


@pytest.fixture
def stored(s3: LocalS3, tmp_path: Path) -> Stored:
    return Stored(s3, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the same training in a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_train(folder, *toy(folder / "run", *OPTIONS)).wait() == 0
    return weights_of(folder / "run")


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_trains_as_in_a_folder(stored: Stored, undisturbed: str, ranks: int) -> None:
    done = stored.run("first", "--workers", ranks, ASYNCHRONOUS)
    assert done.wait() == 0, done.stderr
    assert done.stdout.strip() == stored.storage.describe("pretrained_model")
    if ranks == 1:
        assert stored.weights() == undisturbed
    assert stored.steps() == [6, 8]


def test_a_killed_training_goes_on_on_another_machine_with_the_same_bits(stored: Stored, undisturbed: str) -> None:
    """The machine is lost with all that it had; its lease runs out."""
    command = stored.start("killed", "--config.last-slot", 21)
    wait_for(lambda: stored.steps() == [2, 4])
    command.send(signal.SIGKILL)
    command.wait()
    shutil.rmtree(stored.working.parent)
    stored.machine = "two"
    done = stored.run("resumed")
    assert done.wait() == 0, done.stderr
    assert "going on from step 4" in done.stderr and "looking whether that lives" in done.stderr
    assert stored.weights() == undisturbed and stored.steps() == [6, 8]
    lines = stored.storage.read("metrics.jsonl").decode().splitlines()
    assert [line.partition(",")[0] for line in lines] == [f'{{"step": {step}' for step in range(1, 9)]


@pytest.mark.slow
def test_two_ranks_are_killed_and_go_on_in_the_same_place(stored: Stored) -> None:
    """Nobody waits for the lease: the dead training was here."""
    whole = run_train(stored.folder / "whole", *toy(stored.folder / "run", *OPTIONS, "--workers", 2))
    assert whole.wait() == 0
    command = stored.start("killed", "--workers", 2, ASYNCHRONOUS, "--config.last-slot", 21)
    wait_for(lambda: stored.steps() == [2, 4])
    command.send(signal.SIGKILL)
    command.wait()
    done = stored.run("resumed", "--workers", 2)
    assert done.wait() == 0, done.stderr
    assert "looking whether" not in done.stderr
    assert stored.weights() == weights_of(stored.folder / "run")


def test_an_upload_that_is_killed_does_not_count_and_is_swept(stored: Stored, undisturbed: str) -> None:
    command: list[Command] = []

    def kill(environment: dict[str, Any], application: Any) -> str | None:
        # Its tensors are there, its metadata come next.
        place = environment["PATH_INFO"]
        if environment["REQUEST_METHOD"] == "PUT" and "step-00000004" in place and ".metadata" in place:
            command[0].send(signal.SIGKILL)
            command[0].process.join()
        return None

    with answering(stored.server, kill):
        command.append(stored.start("killed"))
        assert command[0].wait() == -signal.SIGKILL
    left = [file.path for file in stored.storage.list("checkpoints")]
    assert any("step-00000004" in path for path in left) and stored.steps() == [2]
    done = stored.run("resumed")
    assert done.wait() == 0, done.stderr
    assert "uploads that were not finished" in done.stderr and "going on from step 2" in done.stderr
    assert stored.weights() == undisturbed
    places = {file.path.split("/")[1] for file in stored.storage.list("checkpoints")}
    assert {place.partition(".")[0] for place in places} == {"step-00000006", "step-00000008"} and len(places) == 2


def test_a_second_training_is_refused_on_whichever_machine(stored: Stored) -> None:
    first = stored.start("first", "--config.last-slot", 21)
    wait_for(lambda: stored.steps() == [2, 4])
    here = stored.run("here")
    assert here.wait() == 2 and len(here.errors) == 1 and "a training runs in" in here.errors[0]
    stored.machine = "two"
    there = stored.run("there")
    assert there.wait() == 2 and len(there.errors) == 1
    assert f"a training runs in s3://clips/trainings/{stored.folder.name}" in there.errors[0]
    assert f"(process {first.process.pid} on " in there.errors[0]
    first.send(signal.SIGKILL)
    first.wait()


@pytest.mark.slow
def test_a_training_that_was_taken_over_ends_itself(stored: Stored) -> None:
    """Its machine stood still for so long that another one went on."""
    stopped = stored.start("stopped", "--config.last-slot", 13, "--config.wait-s", 0.05)
    wait_for(lambda: stored.steps() == [2])
    stopped.send(signal.SIGSTOP)
    stored.machine = "two"
    done = stored.run("second")
    assert done.wait() == 0, done.stderr
    objects = {file.path for file in stored.storage.list("checkpoints")}
    stopped.send(signal.SIGCONT)
    stopped.send(signal.SIGTERM)
    assert stopped.wait() in (1, 2)
    assert len(stopped.errors) == 1 and "another training has taken over" in stopped.errors[0], stopped.stderr
    assert stored.steps() == [6, 8]
    assert {file.path for file in stored.storage.list("checkpoints")} >= objects


@pytest.mark.parametrize("fault", [refusing_conditions, without_conditions])
def test_a_store_without_conditional_writes_is_refused_at_the_start(stored: Stored, fault: Any) -> None:
    with answering(stored.server, fault):
        done = stored.run("refused")
    assert done.wait() == 2 and len(done.errors) == 1 and "conditional writes" in done.errors[0]
    assert stored.storage.names() == []


@pytest.mark.slow
def test_a_store_that_is_overloaded_for_a_while_ends_nothing(stored: Stored, undisturbed: str) -> None:
    refused = [0]
    lock = threading.Lock()

    def overloaded(environment: dict[str, Any], application: Any) -> str | None:
        """The first 40 requests about the checkpoint of step 4."""
        with lock:
            if "step-00000004" in environment["PATH_INFO"] and refused[0] < 40:
                refused[0] += 1
                return "503 Slow Down"
        return None

    with answering(stored.server, overloaded):
        done = stored.run("busy", ASYNCHRONOUS)
    assert done.wait() == 0, done.stderr
    assert refused[0] == 40 and "trying again" in done.stderr
    assert stored.weights() == undisturbed


def test_a_store_that_stays_away_is_one_line_and_the_run_goes_on_later(stored: Stored, undisturbed: str) -> None:
    def away(environment: dict[str, Any], application: Any) -> str | None:
        return "503 Slow Down" if "step-00000004" in environment["PATH_INFO"] else None

    with answering(stored.server, away):
        done = stored.run("away", TALKINGHEAD_STORE_PATIENCE_S="1")
    assert done.wait() == 1 and len(done.errors) == 1
    assert "cannot write the checkpoint of step 4" in done.errors[0] and "the one of step 2 is whole" in done.errors[0]
    assert "cannot reach s3://" in done.errors[0]
    again = stored.run("again")
    assert again.wait() == 0 and stored.weights() == undisturbed


def test_a_checkpoint_damaged_in_the_store_is_passed_over(stored: Stored, undisturbed: str) -> None:
    command = stored.start("killed", "--config.last-slot", 21)
    wait_for(lambda: stored.steps() == [2, 4])
    command.send(signal.SIGKILL)
    command.wait()
    files = [file.path for file in stored.storage.list("checkpoints", ".distcp")]
    (newest,) = [path for path in files if "step-00000004" in path]
    data = bytearray(stored.storage.read(newest))
    data[len(data) // 2] ^= 1
    stored.storage.write(newest, bytes(data))
    shutil.rmtree(stored.working)  # what is here is whole
    done = stored.run("resumed")
    assert done.wait() == 0, done.stderr
    assert "is damaged" in done.stderr and "is not as it was written" in done.stderr
    assert "going on from step 2" in done.stderr
    assert stored.weights() == undisturbed
    assert stored.storage.exists(newest)
    assert "checkpoints/damaged-step-00000004" in RunStore(stored.uri).listing().folders


@pytest.mark.slow
def test_commands_that_read_a_run(stored: Stored) -> None:
    assert stored.run("first", "--train.validation.every", 4).wait() == 0
    result = stored.storage.list("validation", "result.json")
    assert [file.path for file in result] == [f"validation/step-0000000{step}/result.json" for step in (4, 8)]
    assert stored.storage.exists("weights/step-00000008/weights.safetensors")
    stored.machine = "two"
    done = run_train(stored.folder / "overview", "overview", "--run", stored.uri, **stored.environment, OVERVIEW="")
    assert done.wait() == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(stored.working) and Path(done.stdout.strip()).is_file()
    # Nothing in the store has changed, and nobody holds it.
    assert stored.run("again").wait() == 0


@pytest.mark.parametrize("name", ["overview", "validate", "worker"])
def test_a_run_that_is_not_there_is_one_line(stored: Stored, name: str) -> None:
    step = ["--step", 1] if name == "validate" else []
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} if name == "worker" else {}
    done = run_train(stored.folder / "asked", name, "--run", stored.uri, *step, **stored.environment, **place)
    assert done.wait() == 2 and len(done.errors) == 1 and "there is no run at s3://" in done.errors[0], done.stderr


def test_other_files_in_the_place_are_left(stored: Stored) -> None:
    stored.storage.write("DATASET.json", b"{}")
    done = stored.run("refused")
    assert done.wait() == 2 and len(done.errors) == 1 and "holds 'DATASET.json' but no config.json" in done.errors[0]
    assert stored.storage.names() == ["DATASET.json"]


def test_another_training_in_the_place_is_refused(stored: Stored) -> None:
    assert stored.run("first").wait() == 0
    stored.machine = "two"
    done = stored.run("other", "--config.width", 16)
    assert done.wait() == 2 and "was started otherwise" in done.errors[0]


@pytest.mark.slow
def test_ranks_on_two_machines(stored: Stored) -> None:
    """Each has a working folder of its own; a machine that comes new fetches what it lacks."""
    whole = run_train(stored.folder / "whole", *toy(stored.folder / "run", *OPTIONS, "--workers", 2))
    assert whole.wait() == 0

    def start(name: str, machines: tuple[str, str], *options: object) -> list[Command]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        place |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        commands = []
        for rank, stored.machine in enumerate(machines):
            commands.append(stored.start(f"{name}-{rank}", ASYNCHRONOUS, *options, **place, RANK=str(rank)))
        return commands

    first = start("first", ("one", "two"), "--config.last-slot", 21)
    wait_for(lambda: stored.steps() == [2, 4])
    for command in first:
        command.send(signal.SIGKILL)
        command.wait()
    for command in start("second", ("three", "one")):
        assert command.wait() == 0, command.stderr
    assert stored.weights() == weights_of(stored.folder / "run") and stored.steps() == [6, 8]
    files = {file.path.rpartition("/")[2] for file in stored.storage.list("checkpoints")}
    assert {"__0_0.distcp", "__1_0.distcp"} <= files


@pytest.mark.slow
def test_ray_on_one_machine(stored: Stored) -> None:
    done = stored.run("first", "--launch", "ray")
    assert done.wait() == 0, done.stderr
    assert stored.steps() == [6, 8] and stored.storage.exists("pretrained_model/weights.safetensors")
    assert not [file.path for file in stored.storage.list("logs") if "/ray/" in file.path]


def test_a_ray_cluster_is_refused(stored: Stored) -> None:
    done = stored.run("refused", "--launch", "ray", "--ray-address", "127.0.0.1:9")
    assert done.wait() == 2 and len(done.errors) == 1 and "need a folder that all nodes share" in done.errors[0]
