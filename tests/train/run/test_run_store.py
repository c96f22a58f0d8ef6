from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files.s3_files import RefusedError, S3Files
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file
from talkinghead.runtime.errors import UnreachableError
from tests.support.object_store import LocalS3
from tests.support.store_faults import answering, refusing_conditions, without_conditions
from tests.support.train_commands import wait_for
from train.run import run_store
from train.run.lease import LeaseLost
from train.run.run_store import RunStore

STEP = "checkpoints/step-00000004"
TOKEN = "0123abcd"


class Machines:
    """Machines that have working folders of their own, and one run on a store."""

    def __init__(self, uri: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.uri, self._folder, self._patch = uri, folder, patch
        self.storage = Storage(uri)

    def __call__(self, name: str) -> RunStore:
        """The run as a machine has it."""
        self._patch.setenv("TALKINGHEAD_RUNS", str(self._folder / name))
        store = RunStore(self.uri, renew_s=0.3)
        store.folder.mkdir(parents=True, exist_ok=True)
        return store

    def objects(self) -> dict[str, bytes]:
        """Everything in the store, but the lease and the listing."""
        names = [name for name in self.storage.names() if name not in (".lock", "listing.json")]
        paths = [
            path
            for name in names
            for path in ([f.path for f in self.storage.list(name)] if self.storage.size(name) is None else [name])
        ]
        return {path: self.storage.read(path) for path in paths}


@pytest.fixture
def machines(s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(s3.uri(f"runs/{tmp_path.name}"), tmp_path, monkeypatch)


def fill(folder: Path, **files: str) -> None:
    """Write files; `__` in a name stands for a slash, `_` for a dot before it."""
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def write_checkpoint(store: RunStore, name: str = STEP, text: str = "state", token: str = TOKEN) -> list[Path]:
    folder = store.folder / name
    fill(folder, a=text, b=text * 2)
    for path in ("a", "b"):
        (folder / f"{path}.sha256").write_text(hash_file(folder / path))
    files = sorted(folder.iterdir())
    store.upload(name, token, files)
    return files


@contextmanager
def working(store: RunStore) -> Iterator[RunStore]:
    with store.held():
        store.sweep()
        store.pull()
        yield store


def test_another_machine_gets_what_the_first_has_brought(machines: Machines) -> None:
    here = machines("here")
    with working(here):
        fill(here.folder, config_json="{}", logs__log="l", task__fit="t", pretrained_model__sub__w="weights")
        fill(here.folder / "weights", best="step-00000004\n", **{"step-00000004__w": "old"})
        fill(here.folder / "validation" / "step-00000004", result_json="{}", weights__w="they wait")
        fill(here.folder / "wandb", run="never leaves")
        fill(here.folder / ".temporary.tmp-0123abcd", file="never leaves")
        here.push()
        write_checkpoint(here)
        here.commit(STEP, TOKEN, ["a", "b"])
    there = machines("there")
    with working(there):
        found = contents(there.folder)
        assert there.steps() == [4]
        there.fetch(STEP, there.folder / STEP)
    left = {"wandb/run", ".temporary.tmp-0123abcd/file", "validation/step-00000004/weights/w"}
    expected = contents(here.folder)
    assert found == {k: v for k, v in expected.items() if k not in left and not k.startswith("checkpoints/")}
    assert contents(there.folder / STEP) == contents(here.folder / STEP)
    # People find what they look for by its own name.
    assert machines.objects()["pretrained_model/sub/w"] == b"weights"
    assert machines.objects()["weights/step-00000004/w"] == b"old"


def test_only_what_has_changed_is_brought(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machines("here")
    written: list[str] = []
    write, upload = Storage.write, S3Files.upload
    monkeypatch.setattr(Storage, "write", lambda self, path, data: (written.append(path), write(self, path, data)))
    monkeypatch.setattr(S3Files, "upload", lambda self, path, file: (written.append(path), upload(self, path, file)))
    with working(store):
        fill(store.folder, config_json="{}", metrics="1\n", task__fit="t", pretrained_model__w="1")
        store.push()
        assert len(written) == 4
        written.clear()
        store.push()
        assert written == []
        fill(store.folder, metrics="1\n2\n", new="n")
        (store.folder / "config.json").unlink()
        shutil.rmtree(store.folder / "task")
        store.push()
        assert sorted(written) == ["metrics", "new"]
        assert machines.objects() == {"metrics": b"1\n2\n", "new": b"n", "pretrained_model/w": b"1"}
        # A model takes the place of another one.
        (store.folder / "pretrained_model").rename(store.folder / ".old")
        fill(store.folder, pretrained_model__other="2")
        store.push()
        assert machines.objects() == {"metrics": b"1\n2\n", "new": b"n", "pretrained_model/other": b"2"}
    # The next start here copies nothing, and knows what is there.
    written.clear()
    with working(machines("here")) as again:
        again.push()
        assert written == []


def test_what_a_killed_training_left_here_gives_way_to_the_store(machines: Machines) -> None:
    """It got further than its newest checkpoint in the store."""
    here = machines("here")
    with working(here):
        fill(here.folder, config_json="{}", metrics="1\n", task__fit="t")
        write_checkpoint(here)
        here.push()
        here.commit(STEP, TOKEN, ["a", "b"])
    fill(here.folder, metrics="1\n2\n", extra="x", logs__log="kept", pretrained_model__w="not brought")
    fill(here.folder / "checkpoints" / "step-00000008", a="not brought")
    fill(here.folder / "validation" / "step-00000004", weights__w="they wait", result_json="{}")
    with working(machines("here")):
        pass
    found = contents(here.folder)
    assert found["metrics"] == "1\n" and found["logs/log"] == "kept"
    assert "extra" not in found and "pretrained_model/w" not in found and "checkpoints/step-00000008/a" not in found
    assert found[f"{STEP}/a"] == "state" and found["validation/step-00000004/weights/w"] == "they wait"


def test_a_checkpoint_counts_only_when_it_is_listed(machines: Machines) -> None:
    here = machines("here")
    with working(here):
        write_checkpoint(here)
        write_checkpoint(here, "checkpoints/step-00000008")
        here.commit(STEP, TOKEN, ["a", "b"])
        # Of the second one a rank's file never came.
        with pytest.raises(OSError, match=r"checkpoints/step-00000008\.0123abcd/c did not reach the store"):
            here.commit("checkpoints/step-00000008", TOKEN, ["a", "c"])
        assert here.steps() == [4]
    with here.held():
        assert here.sweep() == 4 and here.sweep() == 0
        assert here.steps() == [4] and {path.split("/")[1] for path in machines.objects()} == {"step-00000004.0123abcd"}
        # Written again, by another start: the new one takes the old one's place.
        write_checkpoint(here, text="new", token="ffff0000")
        here.commit(STEP, "ffff0000", ["a", "b"])
        assert {path.split("/")[1] for path in machines.objects()} == {"step-00000004.ffff0000"}
        here.rename(STEP, "checkpoints/damaged-step-00000004")
        assert here.steps() == [] and here.has_trained()
        assert here.names_of_damaged() == ["checkpoints/damaged-step-00000004"]
        here.remove("checkpoints/damaged-step-00000004")
        assert not here.has_trained() and machines.objects() == {}


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damage_in_the_store_is_found(machines: Machines, damage: str) -> None:
    here = machines("here")
    with working(here):
        write_checkpoint(here)
        here.commit(STEP, TOKEN, ["a", "b"])
        path = f"{STEP}.{TOKEN}/b"
        if damage == "missing":
            machines.storage.delete(path)
        else:
            machines.storage.write(path, b"stateSTATE" if damage == "changed" else b"st")
        here.fetch(STEP, here.folder / STEP)  # what is here is whole
        (here.folder / STEP / "b").write_text("damaged")
        with pytest.raises(ValueError, match=rf"{STEP}\.{TOKEN}/b is (not as it was written|missing)"):
            here.fetch(STEP, here.folder / STEP)
        assert sorted(path.name for path in (here.folder / STEP).iterdir()) == ["a", "a.sha256", "b", "b.sha256"]


def test_files_here_that_are_damaged_or_foreign_are_mended(machines: Machines) -> None:
    here = machines("here")
    with working(here):
        write_checkpoint(here)
        here.commit(STEP, TOKEN, ["a", "b"])
    expected = contents(here.folder / STEP)
    fill(here.folder / STEP, a="STATE", foreign="x")
    (here.folder / STEP / "b.sha256").unlink()
    here.fetch(STEP, here.folder / STEP)
    assert contents(here.folder / STEP) == expected
    with pytest.raises(ValueError, match="is not there any more"):
        here.fetch("checkpoints/step-00000009", here.folder / "none")


def test_who_has_lost_the_lease_lists_nothing_more(machines: Machines) -> None:
    """Nor does it overwrite what the other one writes, whatever it still copies."""
    one, two = machines("one"), machines("two")
    with one.held():
        fill(one.folder, config_json="{}", task__fit="one")
        one.push()
        write_checkpoint(one)
        one.commit(STEP, TOKEN, ["a", "b"])
        assert one._lease is not None
        # As if this machine had been cut off until its lease ran out.
        one._lease._ended.set()
        with two.held():
            two.pull()
            write_checkpoint(two, "checkpoints/step-00000008", "two", "ffff0000")
            two.commit("checkpoints/step-00000008", "ffff0000", ["a", "b"])
            write_checkpoint(one, "checkpoints/step-00000008", "one")
            for write in (
                lambda: one.commit("checkpoints/step-00000008", TOKEN, ["a", "b"]),
                lambda: one.remove(STEP),
                one.check,
                one.push,
            ):
                with pytest.raises(LeaseLost, match="another training has taken over"):
                    write()
            assert two.steps() == [4, 8]
            two.fetch("checkpoints/step-00000008", two.folder / "checkpoints" / "step-00000008")
            assert contents(two.folder / "checkpoints" / "step-00000008")["a"] == "two"


@pytest.mark.parametrize("fault", [refusing_conditions, without_conditions])
def test_a_store_without_conditional_writes_holds_no_run(s3: LocalS3, machines: Machines, fault: Any) -> None:
    store = machines("here")
    with answering(s3, fault), pytest.raises(RefusedError, match="conditional writes"), store.held():
        pass
    assert machines.storage.names() == []


def test_changes_are_brought_in_the_background_and_after_an_error(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "_PUSH_EVERY_S", 0.2)
    store = machines("here")
    with pytest.raises(RuntimeError, match="the training fails"), working(store), store.pushed():
        fill(store.folder, metrics="1\n")
        wait_for(lambda: machines.objects() == {"metrics": b"1\n"})
        monkeypatch.setattr(run_store, "_PUSH_EVERY_S", 600.0)
        fill(store.folder, metrics="1\n2\n")
        store.push_soon()
        wait_for(lambda: machines.objects() == {"metrics": b"1\n2\n"})
        fill(store.folder, logs__log="the reason")
        raise RuntimeError("the training fails")
    assert machines.objects() == {"metrics": b"1\n2\n", "logs/log": b"the reason"}


def test_a_store_that_is_away_is_no_end_of_the_background_thread(
    s3: LocalS3, machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TALKINGHEAD_STORE_PATIENCE_S", "0")
    store = machines("here")
    with working(store), store.pushed():
        fill(store.folder, metrics="1\n")
        with answering(s3, lambda *_: "503 Slow Down"):
            store.push_soon()
            wait_for(lambda: "is not up to date" in caplog.text)
            with pytest.raises(UnreachableError, match="cannot reach"):
                store.push()
        store.push_soon()
        wait_for(lambda: machines.objects() == {"metrics": b"1\n"})


def test_a_damaged_listing_is_one_line(machines: Machines) -> None:
    machines.storage.write("listing.json", b"{")
    with pytest.raises(ValueError, match=r"s3://clips/runs/\S+/listing\.json is damaged .*: bring back a copy of it"):
        machines("here").listing()
    with pytest.raises(ValueError, match="is damaged"), machines("here").held():
        pass


def test_places_that_can_hold_no_run(s3: LocalS3) -> None:
    for location in ("gs://bucket/run", "file:///folder", "https://host/run"):
        with pytest.raises(ValueError, match=r"it can be a folder, or s3://…"):
            RunStore(location)
    with pytest.raises(ValueError, match="in the environment") as refused:
        RunStore(s3.uri_with_credentials("run"))
    assert "s3cr3t" not in str(refused.value)


def test_the_working_folder_has_the_name_of_the_run(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKINGHEAD_RUNS", str(tmp_path))
    one, two = RunStore(s3.uri("a/my-run")), RunStore(s3.uri("b/my-run"))
    assert one.folder.name == two.folder.name == "my-run" and one.folder != two.folder
    assert one.folder.parent.parent == tmp_path and RunStore(s3.uri("a/my-run")).folder == one.folder
    monkeypatch.delenv("TALKINGHEAD_RUNS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert RunStore(s3.uri("a/my-run")).folder.is_relative_to(tmp_path / "cache" / "talkinghead" / "runs")
