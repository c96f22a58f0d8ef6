"""Trainings whose samples cannot all be read, whose readers are lost, and whose store has to be asked again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shards.block_cache import COUNTS
from shards.drawn import DrawnDataset
from shards.loader import SlotDataset, WindowConfig, WindowDataset
from shards.mixture import MixtureDataset, divide
from shards.reader import ShardReader
from shards.replacements import replacing
from talkinghead.files.patience import RETRIES
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import MachineError
from tests.support import toy_task
from tests.support.counted_store import upload
from tests.support.descendants import readers_of
from tests.support.object_store import LocalS3
from tests.support.shard_data import build
from tests.support.training import Ranks, assert_same, lines, recipe, start, train, trainer_of
from train.config import ReadingConfig
from train.trainer.reading import Reading

BAD = (3, 8)


class Killed(Exception):
    """The process is gone."""


def events(path: Path) -> list[dict[str, Any]]:
    """What was replaced, without the step's number."""
    return [line for line in lines(path) if line.get("event") == "replaced"]


def expected(steps: int, size: int = 4) -> list[tuple[int, int, str]]:
    """Step, slot and key of every sample that cannot be read."""
    dataset = toy_task.ToyDataset(toy_task.Config(), 0)
    slots = range(steps * size)
    bad = [slot for slot in slots if dataset.order.at(slot)[1] in BAD]
    return [(slot // size + 1, slot, dataset.key(slot)) for slot in bad]


def test_replaced_samples_are_written_down_alike_for_any_ranks_and_readers(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe({"unreadable": BAD}, steps=12)
    outcomes: dict[str, dict[str, Any]] = {}
    for name, workers in (("here", 0), ("processes", 2)):
        start(tmp_path / name, recipe({"unreadable": BAD}, steps=12, num_workers=workers))
        outcomes[name] = train(tmp_path / name, recipe({"unreadable": BAD}, steps=12, num_workers=workers))
    start(tmp_path / "ranks", chosen)
    outcomes["ranks"] = ranks.run(train, tmp_path / "ranks", chosen)[0]
    found = events(tmp_path / "here")
    assert [(event["step"], event["slot"], event["key"]) for event in found] == expected(12)
    assert all(event["reason"] == f"{event['key']} is cut off" for event in found)
    assert not {event["replacement"] for event in found} & {"toy-3", "toy-8"}
    assert events(tmp_path / "processes") == events(tmp_path / "ranks") == found
    assert_same(outcomes["processes"], outcomes["here"])
    assert_same(outcomes["ranks"], outcomes["here"], 2e-4)
    assert all(outcome["error"] is None for outcome in outcomes.values()), outcomes


def test_a_killed_training_goes_on_with_the_same_replacements(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe({"unreadable": BAD}, steps=12)
    start(tmp_path / "whole", chosen)
    whole = train(tmp_path / "whole", chosen)
    start(tmp_path / "killed", chosen)
    task = toy_task.make(chosen.config, "none", tmp_path)
    loss = task.loss
    # After a step with an event, which is recorded when the next one has been launched, and before a checkpoint, so
    # that it is done again.
    last = next(step for step, *_ in expected(12) if step > 4 and step % 4 in (1, 2))

    def dying(*args: Any, **options: Any) -> Any:
        if options["step"] == last + 1:
            raise Killed
        return loss(*args, **options)

    task.loss = dying  # type: ignore[method-assign]
    trainer = trainer_of(tmp_path / "killed", chosen, task=task)
    with pytest.raises(Killed):
        trainer.fit()
    trainer.close()
    assert events(tmp_path / "killed")[-1]["step"] == last
    assert_same(train(tmp_path / "killed", chosen), whole)
    assert events(tmp_path / "killed") == events(tmp_path / "whole")  # once each


def test_too_many_end_the_training_on_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe({"unreadable": BAD}, steps=60, reading={"abort_above": 0.05})
    start(tmp_path / "run", chosen)
    errors = [outcome["error"] for outcome in ranks.run(train, tmp_path / "run", chosen)]
    assert errors[0] is not None and errors[0] == errors[1]
    # At the first one after a hundred samples.
    step = next(step for step, *_ in expected(60) if step >= 25)
    count = len(expected(step))
    assert f"{count} of {4 * step} samples cannot be read, such as toy-" in errors[0]
    assert "make verify" in errors[0] and "toy-3" in errors[0] and "toy-8" in errors[0]
    assert len(events(tmp_path / "run")) == count
    allowed = recipe({"unreadable": BAD}, steps=60, reading={"abort_above": 0.2})
    start(tmp_path / "other", allowed)
    assert train(tmp_path / "other", allowed)["error"] is None


def test_a_few_are_never_too_many(tmp_path: Path) -> None:
    chosen = recipe({"unreadable": (3,)}, steps=40, reading={"abort_above": 0.0})
    start(tmp_path / "run", chosen)
    assert train(tmp_path / "run", chosen)["error"] is None
    assert len(events(tmp_path / "run")) == 8


def test_retries_are_logged_where_there_were_any(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe()
    start(tmp_path / "run", chosen)
    ranks.run(count_retries)
    ranks.run(train, tmp_path / "run", chosen)
    found = [(line.get("store_retries"), line.get("store_wait_s")) for line in lines(tmp_path / "run")]
    assert found == [(6.0, 4.0), (None, None), (None, None), (None, None)]


def count_retries() -> None:
    """As reading from a store counts them."""
    RETRIES.take()
    RETRIES.add(3, 2.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_reader_changes_no_bit(number: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 12, "num_workers": 2, "reading": {"timeout_s": 2.0}}
    start(tmp_path / "whole", recipe(**settings))
    whole = train(tmp_path / "whole", recipe(**settings))
    slow = recipe({"step_s": 0.1}, **settings)
    start(tmp_path / "run", slow)

    def strike() -> None:
        while len(readers := readers_of()) < 2:
            time.sleep(0.02)
        os.kill(readers[0], number)

    striker = threading.Thread(target=strike)
    striker.start()
    outcome = train(tmp_path / "run", slow)
    striker.join()
    assert outcome["error"] is None
    assert_same(outcome, whole)


def test_an_error_of_the_machine_replaces_nothing(tmp_path: Path) -> None:
    chosen = recipe()
    task = toy_task.make(chosen.config, "none", tmp_path)
    task.dataset = lambda seed: Away(chosen.config, seed)  # type: ignore[method-assign]
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen, task=task)
    with pytest.raises(MachineError, match="the store is away"):
        trainer.fit()
    trainer.close()
    assert not events(tmp_path / "run")


class Away(toy_task.ToyDataset):
    """Samples in a store that cannot be reached from the sixth on."""

    def __getitem__(self, at: Any) -> dict[str, Any]:
        if at > 5:
            raise MachineError("the store is away")
        return super().__getitem__(at)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 0.0},
        {"restarts": -1},
        {"abort_above": 1.5},
        {"at_once": 0},
        {"at_once": 65},
        {"cache": ""},
        {"cache_gb": 0.0},
        {"cache_gb": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"reading\."):
        ReadingConfig(**wrong)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A data set on a local disk."""
    return build(tmp_path_factory.mktemp("built") / "data")


def reading_of(dataset: SlotDataset, **settings: Any) -> Reading:
    """Reading of one rank."""
    config = recipe(reading=settings).train
    return Reading(dataset, config, rank=0, world=1, pin_memory=False, step=0)


def test_a_store_gets_the_cache_and_reads_several_at_once(built: Storage, s3: LocalS3, tmp_path: Path) -> None:
    """Through everything that is put around the data set."""
    stored = upload(built, s3, "cached")
    windows = [
        WindowDataset(ShardReader(data, split=None), WindowConfig(num_frames=4, columns=("valid",)), 0)
        for data in (stored, built)
    ]
    mixed = DrawnDataset(MixtureDataset(windows, (1.0, 1.0), 0), lambda item: {})
    reading = reading_of(mixed, cache=str(tmp_path / "cache"), cache_gb=0.1)
    there, here = (one.reader.ranges for one in windows)
    assert there.cache is not None and there.cache.folder == tmp_path / "cache" and there.cache.size == 10**8
    assert here.cache is None and reading.loader.at_once == 4
    assert reading_of(mixed, at_once=2).loader.at_once == 2
    COUNTS.take()
    reading.next()
    counts = reading.noticed().counts
    assert counts["misses"] > 0 and list((tmp_path / "cache").glob("*-*/*"))
    # Both appear in the next line of figures, and then no more.
    reading.settle(1, reading.noticed(), counts | {"replaced": 0.0}, None)
    assert reading.figures()["cache_misses"] == counts["misses"] and not reading.figures()
    reading.close()


def test_a_cache_that_nothing_needs_is_said(built: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = WindowDataset(ShardReader(built, split=None), WindowConfig(num_frames=4, columns=("valid",)), 0)
    reading = reading_of(dataset, cache=str(tmp_path / "cache"))
    assert ["is not used" in text for text in caplog.messages] == [True]
    assert reading.loader.at_once == 1 and not (tmp_path / "cache").exists()


def test_the_microbatches_are_those_of_the_data_set(tmp_path: Path) -> None:
    """Replacing changes what a slot gets, never which slots there are."""
    chosen = recipe(microbatch_seconds=5.0)
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    dataset = toy_task.ToyDataset(chosen.config, 0)
    order = divide(dataset, size=2, seconds=5.0, seed=0)
    found = trainer.reading.loader.microbatches
    assert [found.shares(number) for number in range(9)] == [order.shares(number) for number in range(9)]
    assert trainer.reading.first() is trainer.reading.next()
    assert len(replacing(dataset, 0)) == len(dataset)
    trainer.close()
