"""Steps that are launched without waiting for the device, and settled one step later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import toy_adversary, toy_task
from tests.support.face_clips import build_face_data
from tests.support.host_reads import HostReads
from tests.support.lmk2video_tasks import SMALL
from tests.support.speech_data import build_speech_data
from tests.support.training import Ranks, assert_same, lines, recipe, start, tensors_of, train, trainer_of
from train.config import CheckpointConfig, LogConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.backward import Backward
from train.trainer.guard import RunningMedian
from train.trainer.learner import Learner
from train.trainer.loop import Trainer
from train.trainer.port import LocalPort

STEPS = 3


def counted(trainer: Trainer) -> list[HostReads]:
    """Train to the end; returns the host reads of each launch: everything between a batch on the host and the next."""
    found: list[HostReads] = []
    launch = trainer.stepping.launch

    def counting(*args: Any, **options: Any) -> Any:
        with HostReads() as reads:
            launched = launch(*args, **options)
        found.append(reads)
        return launched

    trainer.stepping.launch = counting  # type: ignore[method-assign]
    try:
        trainer.fit()
    finally:
        trainer.close()
    return found


# --- the recipes ------------------------------------------------------------------------------------------------------


def begun(path: Path, name: str, data: str, **config: Any) -> Trainer:
    """Trainer of the recipe `tiny`, before its first step."""
    torch.set_num_threads(1)
    base = recipes_of(name)["tiny"]()
    settings = dataclasses.replace(
        base.train,
        steps=STEPS,
        global_batch=4,
        microbatch=2,
        num_workers=0,
        checkpoint=CheckpointConfig(every=100, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=STEPS, tensorboard=False),  # the last step has norms of the networks, too
    )
    chosen = Recipe(config=dataclasses.replace(base.config, **config), train=settings)
    run = RunFolder.start(path, RunConfig(task=name, recipe_name="tiny", recipe=chosen, data=data))
    task = make_task(name, chosen.config, data, run.task_folder)
    task.check()
    run.task_folder.mkdir()
    task.prepare()
    return Trainer(task, chosen.train, run, LocalPort())


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_a_step_from_speech_waits_for_nothing(tmp_path: Path, name: str) -> None:
    data = build_speech_data(tmp_path / "data").uri
    found = counted(begun(tmp_path / "run", name, data))
    assert len(found) == STEPS
    assert not any(reads.found for reads in found), "\n".join(map(str, found))


def test_a_step_of_both_stages_waits_for_nothing(tmp_path: Path) -> None:
    data = build_face_data(tmp_path / "data").uri
    trainer = begun(tmp_path / "1", "stage1", data, **SMALL["stage1"])
    found = counted(trainer)
    (tmp_path / "1" / "pretrained_model").mkdir()
    trainer.export(tmp_path / "1" / "pretrained_model")
    found += counted(begun(tmp_path / "2", "stage2", data, stage1=str(tmp_path / "1"), **SMALL["stage2"]))
    assert len(found) == 2 * STEPS
    assert not any(reads.found for reads in found), "\n".join(map(str, found))


# --- everything that a task may do ------------------------------------------------------------------------------------

EVERYTHING = {"counts": True, "term": 0.3, "follow": True, "late_head": 2, "dropout": 0.1, "critic_start": 1}
HOST = [("train/trainer/backward.py", "__int__")]
"""Reads that wait for no device: the seed of dropout comes from the slot of a batch on the host."""


def of_the_trainer(found: list[HostReads]) -> list[str]:
    """Host reads but those of the toy's own losses, which look at the slots to spoil them."""
    reads = [read for one in found for read in one.found if not read.file.startswith("tests/")]
    return [str(read) for read in reads if (read.file, read.operation) not in HOST]


def everything() -> Recipe:
    settings = {"log": {"every": 4}, "guard": {"skip_above": 9.0}, "checkpoint": {"every": 100}}
    return recipe(EVERYTHING, toy_adversary.tiny(), **settings)


def reads_of_everything(path: Path) -> list[str]:
    return of_the_trainer(counted(trainer_of(path, everything())))


def test_nothing_that_a_task_may_do_waits_nor_what_ranks_exchange(ranks: Ranks, tmp_path: Path) -> None:
    for name in ("one", "two"):
        start(tmp_path / name, everything())
    assert reads_of_everything(tmp_path / "one") == []
    assert ranks.run(reads_of_everything, tmp_path / "two") == [[], []]


@pytest.mark.parametrize(
    ("whose", "name"),
    [(toy_task.ToyTask, "loss"), (Learner, "update"), (RunningMedian, "passes"), (Backward, "module_turn")],
)
def test_a_read_anywhere_in_a_step_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: Any, name: str
) -> None:
    """In a loss, the learner, the guard, or the backward passes."""
    method: Callable[..., Any] = getattr(whose, name)
    value = torch.tensor(1.0)

    def reading(*args: Any, **options: Any) -> Any:
        value.item()
        return method(*args, **options)

    monkeypatch.setattr(whose, name, reading)
    chosen = recipe()
    start(tmp_path / "run", chosen)
    found = counted(trainer_of(tmp_path / "run", chosen))
    places = {read.operation for one in found for read in one.found if read.file.endswith("test_stepping.py")}
    assert places == {"item"}


# --- a step late ------------------------------------------------------------------------------------------------------


def test_figures_are_read_when_the_next_step_is_launched_or_when_they_are_needed(tmp_path: Path) -> None:
    chosen = recipe(steps=7, log={"every": 3}, checkpoint={"every": 100})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    launch, settle = trainer.stepping.launch, trainer.stepping.settle
    order: list[str] = []

    def launching(batch: Any, step: int, flags: Any) -> Any:
        order.append(f"launch {step + 1}")
        return launch(batch, step, flags)

    def settling(launched: Any, tracker: Any) -> Any:
        order.append(f"settle {launched.step + 1}")
        return settle(launched, tracker)

    trainer.stepping.launch, trainer.stepping.settle = launching, settling  # type: ignore[method-assign]
    trainer.fit()
    trainer.close()
    expected = [
        "launch 1 launch 2 settle 1 launch 3 settle 2 settle 3",  # a line of figures after step 3
        "launch 4 launch 5 settle 4 launch 6 settle 5 settle 6",
        "launch 7 settle 7",  # the last
    ]
    assert order == [f"{verb} {step}" for line in expected for verb, step in _pairs(line)]


def _pairs(line: str) -> list[tuple[str, str]]:
    words = line.split()
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("fault", ["bad_loss", "bad_gradient"])
def test_records_are_the_same_however_late_they_are(ranks: Ranks, tmp_path: Path, fault: str) -> None:
    """Lines after every step, where each is settled at once, and only at the end: weights and events are the same."""
    found: dict[int, Any] = {}
    for every in (1, 8):
        chosen = recipe({fault: (9, 22)}, log={"every": every}, checkpoint={"every": 100})
        found[every] = train(tmp_path / f"{every}", chosen)
        ranks.run(train, tmp_path / f"{every}-ranks", chosen)
    assert_same(found[1], found[8])
    assert found[1]["skipped"] == found[8]["skipped"] == 2
    events = [
        [line for line in lines(path) if "event" in line]
        for every in (1, 8)
        for path in (tmp_path / f"{every}", tmp_path / f"{every}-ranks")
    ]
    assert [event["step"] for event in events[0]] == [3, 6]
    assert events[0] == events[1] == events[2] == events[3]


def test_a_skipped_step_leaves_every_buffer_bit_by_bit(tmp_path: Path) -> None:
    """BatchNorm, power iterations, and a buffer that follows the loss; with weights, moments, averages and medians."""
    chosen = recipe(EVERYTHING | {"bad_loss": (16 * 4 + 3,)}, toy_adversary.tiny(), ema={"decay": 0.9})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    states: list[dict[str, Any]] = []
    after = trainer._after_step

    def noting() -> None:
        states.append(tensors_of(trainer) | {"medians": {"": trainer.medians.state()["values"].clone()}})
        after()

    trainer._after_step = noting  # type: ignore[method-assign]
    trainer.fit()
    trainer.close()
    assert trainer.guard.total == 1
    for part, before in states[3].items():
        for name, value in before.items():
            other = states[4][part][name]
            assert torch.equal(value.nan_to_num(), other.nan_to_num()), f"{part} {name}"
    assert not torch.equal(states[4]["module"]["followed"], states[5]["module"]["followed"])


# --- what an error leaves open ----------------------------------------------------------------------------------------


GONE = ValueError("the store is gone")


def events(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines(path) if "event" in line]


def failing(path: Path, chosen: Recipe, *, at: int, error: BaseException = GONE) -> list[dict[str, Any]]:
    """Train until the data of a step (from 1) fail on rank 0, which the others do not know; returns the events."""
    trainer = trainer_of(path, chosen)
    read = trainer.reading.next

    def failing_read() -> Any:
        if trainer.step == at - 1 and trainer.port.rank == 0:
            raise error
        return read()

    trainer.reading.next = failing_read  # type: ignore[method-assign]
    with pytest.raises(type(error)) as raised:
        trainer.fit()
    assert raised.value is error, "what is recorded at last does not hide why it ended"
    trainer.close()
    return events(path)


@pytest.mark.parametrize("fault", ["bad_loss", "bad_gradient"])
@pytest.mark.parametrize("error", [GONE, KeyboardInterrupt()])
def test_a_skipped_step_is_recorded_when_the_data_of_the_next_one_fail(
    tmp_path: Path, fault: str, error: BaseException
) -> None:
    """Of a second Ctrl-C, too, which ends a training at once."""
    chosen = recipe({fault: (9,)}, log={"every": 8}, checkpoint={"every": 100})
    for name in ("run", "whole"):
        start(tmp_path / name, chosen)
    found = failing(tmp_path / "run", chosen, at=4, error=error)
    train(tmp_path / "whole", chosen)
    assert found == events(tmp_path / "whole")
    assert [(event["event"], event["step"]) for event in found] == [("skipped", 3)]


def test_it_is_recorded_without_the_other_ranks(tmp_path: Path) -> None:
    """The other one waits for the gradients of the next step, and would answer no question."""
    chosen = recipe({"bad_gradient": (9,)}, log={"every": 8}, checkpoint={"every": 100})
    start(tmp_path / "run", chosen)
    pair = Ranks(2, tmp_path)
    try:
        for pipe in pair.pipes:
            pipe.send((failing, (tmp_path / "run", chosen), {"at": 4}))
        assert pair.pipes[0].poll(240), "rank 0 waits for the other"
        good, found = pair.pipes[0].recv()
    finally:
        for process in pair.processes:
            process.kill()
        pair.stop()
    assert good, found
    # Slots 8 and 9 are of rank 0.
    assert [(event["step"], event["what"], len(event["keys"])) for event in found] == [(3, "gradient", 1)]


def test_a_step_that_was_launched_before_the_guard_ends_a_training_is_recorded(tmp_path: Path) -> None:
    chosen = recipe(
        {"bad_loss": tuple(range(100))}, guard={"abort_after": 2}, log={"every": 8}, checkpoint={"every": 100}
    )
    found = train(tmp_path / "run", chosen)
    assert found["error"].startswith("NotFinite: 2 steps in a row, up to step 2, were skipped")
    assert [event["step"] for event in events(tmp_path / "run")] == [1, 2, 3]


class _Busy:
    """Figures of a device that does not come to an end."""

    def arrived(self, patience_s: float) -> bool:
        return False


class _Failed:
    """Figures of a device that has failed."""

    def arrived(self, patience_s: float) -> bool:
        raise AssertionError("device-side assert triggered")


@pytest.mark.parametrize(("figures", "said"), [(_Busy(), "not known: the device"), (_Failed(), "not recorded: Assert")])
def test_a_device_that_does_not_answer_hides_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, figures: Any, said: str
) -> None:
    chosen = recipe({"bad_loss": (9,)}, log={"every": 8}, checkpoint={"every": 100})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    launch = trainer.stepping.launch

    def launching(batch: Any, step: int, flags: Any) -> Any:
        launched = launch(batch, step, flags)
        if step == 2:
            trainer.reading.next = lambda: 1 / 0  # type: ignore[method-assign]
            return dataclasses.replace(launched, figures=figures)
        return launched

    trainer.stepping.launch = launching  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    trainer.close()
    assert not events(tmp_path / "run") and f"what became of step 3 is {said}" in caplog.text
