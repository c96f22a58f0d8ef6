"""Several data sets in one training: which go together, and what is read of each."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.loader import ClipLoader
from shards.manifest import read_manifest, write_manifest
from shards.mixture import MixtureDataset
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.models.image.networks import ImageNetworks
from tests.support import face_clips, speech_data
from tests.support.derived_data import TOY, ToySettings, add_version, toy
from tests.support.lmk2video_tasks import SMALL
from tests.support.train_commands import Command, start_train
from train.data_sets import DataSets, check_together, together
from train.recipe import make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder


@pytest.fixture
def faces(tmp_path: Path) -> tuple[Storage, Storage]:
    """Four clips of two persons each, other persons in both."""
    return face_clips.build_face_data(tmp_path / "one"), face_clips.build_face_data(tmp_path / "two", "more", first=2)


def both(faces: tuple[Storage, Storage], weights: tuple[float, ...] = ()) -> DataSets:
    return DataSets(locations=tuple(storage.uri for storage in faces), weights=weights)


def stage1(data: DataSets, folder: Path, **changes: Any) -> Any:
    config = dataclasses.replace(recipes_of("stage1")["tiny"]().config, **(SMALL["stage1"] | changes))
    folder.mkdir()
    return make_task("stage1", config, data, folder)


def test_samples_of_both_are_drawn_by_their_weights(faces: tuple[Storage, Storage], tmp_path: Path) -> None:
    task = stage1(both(faces, (3.0, 1.0)), tmp_path / "task")
    task.check()
    task.prepare()
    dataset = task.dataset(0)
    mixture = dataset.dataset
    assert isinstance(mixture, MixtureDataset) and mixture.order.weights == (3.0, 1.0)
    assert [sorted(part.reader.keys) for part in mixture.datasets] == [
        [face_clips.clip_key(number, name) for number in range(3)] for name in ("face", "more")
    ]
    batches = iter(ClipLoader(dataset, 4))
    drawn = [key for _ in range(10) for key in next(batches)["keys"]]
    assert sum("more" in key for key in drawn) == sum(mixture.order.at(slot)[0] for slot in range(40))
    # Without weights, as if all samples were in one data set.
    assert stage1(both(faces), tmp_path / "even").data.mixed([range(6), range(3)], 0).order.weights == (6, 3)
    # What is read is noted for each, under the name that it has there.
    assert [read.versions for read in task.reads()] == [("v1",), ("v1",)]
    again = make_task("stage1", task.config, both(faces, (3.0, 1.0)), tmp_path / "task")
    again.check()
    assert [clips.reader().keys for clips in again.clips] == [part.reader.keys for part in mixture.datasets]


def test_latents_are_read_where_all_have_them(
    faces: tuple[Storage, Storage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    face_clips.add_latents(faces[1], ImageNetworks.load("tiny", "tiny"), 32, 32)
    task = stage1(both(faces), tmp_path / "task")
    task.check()
    assert f"{faces[0].uri} has no latents, so that images are encoded" in caplog.text
    task.prepare()
    names = [next(iter(ClipLoader(task.dataset(0), 6))).keys() for _ in range(1)]
    assert "target" in names[0] and "target_moments" not in names[0]
    with pytest.raises(ValueError, match=rf"{faces[0].uri} has no latents of these weights"):
        stage1(both(faces), tmp_path / "required", use_latents="require").check()
    face_clips.add_latents(faces[0], ImageNetworks.load("tiny", "tiny"), 32, 32)
    cached = stage1(both(faces), tmp_path / "cached")
    cached.prepare()
    assert "target_moments" in next(iter(ClipLoader(cached.dataset(0), 6)))


def open_train(*data: Storage, **options: Any) -> list[ShardReader]:
    return [ShardReader(storage, **options) for storage in data]


def copied(storage: Storage, folder: Path) -> Storage:
    assert storage.local_root is not None
    return Storage(shutil.copytree(storage.local_root, folder))


def with_other_version(faces: tuple[Storage, Storage], tmp_path: Path) -> list[ShardReader]:
    add_version(faces[0], TOY, toy)
    add_version(faces[1], TOY, toy, settings=ToySettings(number=5))
    return open_train(*faces, join=("toy",))


def with_same_clips(faces: tuple[Storage, Storage], tmp_path: Path) -> list[ShardReader]:
    return open_train(faces[0], copied(faces[0], tmp_path / "copy"))


def with_held_out(faces: tuple[Storage, Storage], tmp_path: Path) -> list[ShardReader]:
    # Person 1 is held out in the first (clip 3), and has a training clip here.
    return open_train(faces[0], face_clips.build_face_data(tmp_path / "third", "third", first=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            with_other_version,
            r"different versions of the column toy \(toy-\w+ and toy-\w+\).*--config\.join toy@VERSION",
        ),
        (with_same_clips, r"both have folder-face_0-abcd, folder-face_1-abcd, folder-face_2-abcd: a sample may be"),
        (with_held_out, r"person-1 is held out in .*one and trained on in .*third"),
    ],
)
def test_what_does_not_go_together_is_refused(
    faces: tuple[Storage, Storage], tmp_path: Path, make: Callable[..., list[ShardReader]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_together(make(faces, tmp_path))


def test_the_same_versions_go_together(faces: tuple[Storage, Storage]) -> None:
    for storage in faces:
        add_version(storage, TOY, toy)
    check_together(open_train(*faces, join=("toy",)))
    check_together(open_train(*faces))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"locations": ("a", "")}, "is empty"),
        ({"locations": ("a", "a")}, "named twice"),
        ({"locations": ("a", "b"), "weights": (1.0,)}, "2 data sets have 1 weights"),
        ({"locations": ("a", "b"), "weights": (1.0, 0.0)}, "must be above 0"),
    ],
)
def test_wrong_data_sets_are_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSets(**data)


def test_they_come_back_from_text_and_from_the_run(tmp_path: Path) -> None:
    data = DataSets(locations=("a b", "s3://x/y"), weights=(1.0, 0.5))
    assert DataSets.from_text(data.to_text()) == data
    recipe = recipes_of("audio2mesh")["tiny"]()
    config = RunConfig(
        task="audio2mesh",
        recipe_name="tiny",
        recipe=recipe,
        data="a b",
        more_data=("s3://x/y",),
        data_weights=(1.0, 0.5),
    )
    run = RunFolder.start(tmp_path / "run", config)
    assert RunFolder.open(run.path).data_sets == data
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    for changed in ({"more_data": ()}, {"data_weights": (1.0, 0.6)}, {"more_data": ("s3://x/z",)}):
        if "more_data" in changed and not changed["more_data"]:
            changed |= {"data_weights": ()}
        with pytest.raises(ValueError, match=r"more_data|data_weights"):
            RunFolder.start(run.path, dataclasses.replace(config, **changed))


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_models_from_speech_learn_from_both(name: str, tmp_path: Path) -> None:
    """By the command line, to the end: statistics, speakers and validation over both data sets.

    The commands have processes of their own: where they run, and how, must not follow from what other tests leave.
    """

    def command(*arguments: str) -> Command:
        done = start_train(tmp_path / "output", *arguments)
        done.wait(800)
        return done

    one = speech_data.build_speech_data(tmp_path / "one")
    two = speech_data.build_speech_data(tmp_path / "two", "more", first=3)
    small = ["--config.window-frames", "24", "--train.steps", "2", "--train.schedule.warmup-steps", "1"]
    if name == "audio2pose":
        small += ["--config.context", "12"]
    more = ["--more-data", two.uri, "--data-weights", "1", "2"]
    run = tmp_path / "run"
    asked = [name, "tiny", "--data", one.uri, "--run", str(run), "--train.parallel.threads", "1", *small]
    done = command(*asked, *more)
    assert done.wait() == 0 and "the validation of step 2 failed" not in done.stderr, done.stderr
    task = make_task(name, RunFolder.open(run).recipe.config, RunFolder.open(run).data_sets, run / "task")
    assert list(task.corpus.speakers) == ["speaker-0", "speaker-1", "speaker-3", "speaker-4"]  # type: ignore[attr-defined]
    assert {read.indexes[0].index for read in task.reads()} == {
        read_manifest(storage).annotation().index for storage in (one, two)
    }
    held_out = (run / "validation" / "step-00000002" / "validation.json").read_text()
    assert speech_data.clip_key(4) in held_out and speech_data.clip_key(4, "more") in held_out
    # Both know of the run; other data sets are another training.
    for storage in (one, two):
        assert str(run) in "".join(path.read_text() for path in Path(str(storage.local_root)).glob("pins/*"))
    done = command(*asked)
    assert done.wait() == 2 and "more_data" in done.stderr, done.stderr
    manifest = read_manifest(two)
    write_manifest(two, dataclasses.replace(manifest, annotations=[]))
    assert command(*asked, *more, "--run", str(tmp_path / "other")).wait() == 2


@pytest.mark.parametrize(
    "damage", [{"more_data": "abc"}, {"more_data": [1]}, {"data_weights": "12"}, {"more_data": {}}]
)
def test_a_run_whose_data_sets_are_no_list_is_damaged(damage: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipes_of("audio2mesh")["tiny"]()
    run = RunFolder.start(tmp_path / "run", RunConfig(task="audio2mesh", recipe_name="tiny", recipe=recipe, data="a"))
    file = run.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(ValueError, match="is damaged"):
        RunFolder.open(run.path)


def test_data_sets_together_are_drawn_from_by_their_size() -> None:
    class Numbers:
        readers = ()

        def __init__(self, name: str, count: int, bad: int = -1) -> None:
            self.name, self.count, self.bad = name, count, bad

        def __len__(self) -> int:
            return self.count

        def key(self, at: Any) -> str:
            return f"{self.name}-{at}"

        def __getitem__(self, slot: Any) -> dict[str, Any]:
            if slot == self.bad:
                raise ValueError("cut off")
            return {"key": self.key(slot), "slot": slot}

    assert together([], 0) is None
    one = together([Numbers("a", 4, bad=2)], 0)
    assert one is not None and one[1]["key"] == "a-1" and one[2]["key"] != "a-2" and one[2]["slot"] == 2
    both = together([Numbers("a", 30), Numbers("b", 10)], 0)
    assert both is not None and len(both) == 40
    assert 600 < sum(both[slot]["key"].startswith("a") for slot in range(1000)) < 900
