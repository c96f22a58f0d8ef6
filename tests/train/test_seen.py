"""What a run has learnt from, told by its order alone, against the batches that it was really given."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shards.manifest import read_manifest, write_manifest
from shards.removal import without_samples
from talkinghead.files.storage import Storage
from tests.support.damaged_clips import cut_in_half
from tests.support.speech_data import LENGTHS, build_speech_data, clip_key
from tests.support.training import Ranks, assert_same, tensors_of
from train.__main__ import main
from train.config import CheckpointConfig, LogConfig, ScheduleConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.seen import _sources, readings_of
from train.trainer.loop import Trainer
from train.trainer.port import LocalPort

NAME = "audio2mesh"
KEYS = [clip_key(number) for number in range(len(LENGTHS))]


class Killed(Exception):
    """The process is gone."""


def recipe(microbatch: int, steps: int, seconds: float | None = None) -> Recipe:
    base = recipes_of(NAME)["tiny"]()
    train = dataclasses.replace(
        base.train,
        steps=steps,
        global_batch=4,
        microbatch=microbatch,
        microbatch_seconds=seconds,
        schedule=ScheduleConfig(name="constant", warmup_steps=0),
        checkpoint=CheckpointConfig(every=3, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=1, tensorboard=False),
    )
    return Recipe(config=dataclasses.replace(base.config, window_frames=24, hidden=32), train=train)


def train(
    path: Path,
    *data: str,
    weights: tuple[float, ...] = (),
    steps: int = 8,
    microbatch: int = 2,
    seconds: float | None = None,
    kill_at: int | None = None,
) -> dict[str, Any]:
    """Train on this rank, which notes every batch of a step that it has done; it dies after `kill_at` steps."""
    torch.set_num_threads(1)
    chosen = recipe(microbatch, steps, seconds)
    more = {"more_data": data[1:], "data_weights": weights}
    config = RunConfig(task=NAME, recipe_name="tiny", recipe=chosen, data=data[0], **more)
    run = RunFolder(path, config)
    task = make_task(NAME, chosen.config, config.data_sets, run.task_folder)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        RunFolder.start(path, config)
        if not run.task_folder.is_dir():
            run.task_folder.mkdir()
            task.prepare()
    if dist.is_initialized():
        dist.barrier()
    trainer = Trainer(task, chosen.train, run, LocalPort(rank=rank, world=world, local_rank=rank, local_world=world))
    loss, after = task.loss, trainer._after_step
    batches: list[list[Any]] = []

    def recording(module: Any, batch: Any, **about: Any) -> Any:
        if trainer.step == kill_at:
            raise Killed
        batches.extend(
            [trainer.step + 1, int(slot), key] for slot, key in zip(batch["slot"], batch["keys"], strict=True)
        )
        return loss(module, batch, **about)

    def noting() -> None:
        with (path.parent / f"batches-{rank}.jsonl").open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in batches)
        batches.clear()
        after()

    task.loss = recording  # type: ignore[method-assign]
    trainer._after_step = noting  # type: ignore[method-assign]
    try:
        trainer.fit()
        return tensors_of(trainer)
    finally:
        trainer.close()


def recorded(folder: Path) -> dict[str, list[int]]:
    """Key → steps that learnt from it, out of the batches that all ranks have noted. A step that was done twice, since
    a kill had lost it, and the rehearsal before a first step, give the same slots again."""
    lines = {line for file in folder.glob("batches-*.jsonl") for line in file.read_text().splitlines()}
    found: dict[str, list[int]] = {}
    for step, _, key in sorted(map(json.loads, lines)):
        found.setdefault(key, []).append(step)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture(scope="module")
def killed(data: Storage, ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one rank began, in which it died, and that two ranks with other microbatches went on with."""
    path = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Killed):
        train(path, data.uri, kill_at=5)
    assert readings_of(path, keys=KEYS).up_to == 5  # by the log: the newest checkpoint is of step 3
    ranks.run(train, path, data.uri, microbatch=1)
    return path


def test_a_killed_and_resized_run_has_learnt_from_what_its_batches_held(killed: Path) -> None:
    expected = recorded(killed.parent)
    assert sum(map(len, expected.values())) == 8 * 4  # eight steps of four, none twice, none missing
    found = readings_of(killed, keys=KEYS)
    assert found.steps == dict(sorted(expected.items()))
    assert (found.up_to, found.asked, found.unknown) == (8, sorted(KEYS), [])


def test_every_sample_and_every_step_alone_agree(killed: Path) -> None:
    expected = recorded(killed.parent)
    for key in KEYS:
        for step in range(9):
            steps = [number for number in expected.get(key, []) if number <= step]
            assert readings_of(killed, keys=[key], up_to=step).steps == ({key: steps} if steps else {})


def test_a_person_is_all_its_samples(killed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = recorded(killed.parent)
    assert main(["seen", str(killed), "--person", "speaker-0"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for key in (clip_key(0), clip_key(1)):
        assert f"{key}\tsteps {', '.join(map(str, dict.fromkeys(expected[key])))}" in lines
    assert "2 of 2 samples were learnt from in steps 1 … 8" in lines[-2]
    assert lines[-1] == "checkpoints made of them: 6, 8"


@pytest.mark.parametrize("kind", ["two data sets", "by length", "two data sets by length"])
def test_mixtures_and_microbatches_by_length_are_told_and_go_on_exactly(
    kind: str, data: Storage, ranks: Ranks, tmp_path: Path
) -> None:
    """One rank began, in which it died, and two went on; they end where an unbroken run of one rank does."""
    sets, options = [data.uri], {}
    if "two" in kind:
        sets.append(build_speech_data(tmp_path / "more", "more", first=3).uri)
        options["weights"] = (3.0, 1.0)
    if "length" in kind:
        options["seconds"] = 3.5
    unbroken = train(tmp_path / "unbroken/run", *sets, **options)
    path = tmp_path / "killed/run"
    with pytest.raises(Killed):
        train(path, *sets, kill_at=5, **options)
    assert_same(ranks.run(train, path, *sets, **options)[0], unbroken, 2e-4)  # Adam, and other sums
    expected = recorded(path.parent)
    assert expected == recorded(tmp_path / "unbroken")
    keys = [clip_key(number, name) for name in ("speech", "more") for number in range(len(LENGTHS))]
    found = readings_of(path, keys=keys)
    assert found.steps == dict(sorted(expected.items()))
    drawn = [name for key in expected for name in ("speech", "more") if f"-{name}_" in key]
    assert set(drawn) == ({"speech", "more"} if "two" in kind else {"speech"})
    if "two" in kind:
        assert readings_of(path, person="speaker-3").asked == [clip_key(0, "more"), clip_key(1, "more")]
        with pytest.raises(ValueError, match="reads 2 data sets: name all of them"):
            readings_of(path, keys=keys, data=[data.uri])


def test_replaced_samples_were_not_learnt_from_and_those_in_their_place_were(ranks: Ranks, tmp_path: Path) -> None:
    """A sound that was cut after the index was made; one rank begins, in which it dies, and two go on."""
    storage = build_speech_data(tmp_path / "data")
    path = tmp_path / "training/run"
    path.parent.mkdir()
    # The run begins with a whole data set, whose facts it derives; then the disk damages a clip.
    with pytest.raises(Killed):
        train(path, storage.uri, kill_at=0)
    cut_in_half(storage, clip_key(1), "wav")
    with pytest.raises(Killed):
        train(path, storage.uri, kill_at=5)
    ranks.run(train, path, storage.uri, microbatch=1)
    expected = recorded(path.parent)
    assert sum(map(len, expected.values())) == 8 * 4 and clip_key(1) not in expected
    found = readings_of(path, keys=KEYS)
    assert found.steps == dict(sorted(expected.items()))
    log = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    replaced = [line for line in log if line.get("event") == "replaced"]
    assert len(replaced) >= 8 and {line["key"] for line in replaced} == {clip_key(1)}
    assert len({line["slot"] for line in replaced}) == len(replaced)
    assert readings_of(path, keys=[clip_key(1)]).steps == {}
    for step in range(9):
        by_then = {key: [s for s in steps if s <= step] for key, steps in expected.items()}
        steps = {key: those for key, those in sorted(by_then.items()) if those}
        assert readings_of(path, keys=KEYS, up_to=step).steps == steps


def test_held_out_and_rejected_samples_were_not_learnt_from(killed: Path) -> None:
    held_out = clip_key(len(LENGTHS) - 1)
    found = readings_of(killed, keys=[held_out, "folder-nobody-0000"])
    assert (found.steps, found.asked, found.unknown) == ({}, [held_out], ["folder-nobody-0000"])


def test_the_answer_is_the_same_after_a_removal_until_the_index_goes(killed: Path, tmp_path: Path) -> None:
    copy = build_speech_data(tmp_path / "data")
    before = readings_of(killed, person="speaker-0", data=[copy.uri])
    manifest = read_manifest(copy)
    write_manifest(copy, without_samples(copy, manifest, [clip_key(0), clip_key(1)]).manifest)
    assert before.steps
    assert readings_of(killed, person="speaker-0", data=[copy.uri]) == before
    copy.delete(manifest.annotation().index)
    with pytest.raises(ValueError, match=r"is gone .*cannot be told any more"):
        readings_of(killed, person="speaker-0", data=[copy.uri])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a person"),
        (["--person", "x", "--keys", "y"], "name a person"),
        (["--keys", "nowhere.txt"], "there is no file"),
        (["--person", "nobody"], "no sample of .* belonged to"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    killed: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["seen", str(killed), *arguments]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_a_run_that_has_not_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run"):
        readings_of(tmp_path / "none", keys=KEYS)
    chosen = recipe(2, 8)
    RunFolder.start(tmp_path / "run", RunConfig(task=NAME, recipe_name="tiny", recipe=chosen, data="nowhere"))
    with pytest.raises(ValueError, match="has not begun to train"):
        readings_of(tmp_path / "run", keys=KEYS)


def test_an_order_of_another_kind_is_no_guess() -> None:
    with pytest.raises(ValueError, match="in an order of its own"):
        _sources(object(), "mine")
