"""`remove` and `gc` as a user runs them, on the embedded sample: what SOURCE still holds does not come back."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest

from orchestration.__main__ import main
from shards.reader import ShardReader
from shards.removal_records import PENDING, Pending, find_pending, write_pending
from talkinghead.files.storage import Storage
from tests.support.data_contents import contents_of
from tests.support.dying import die_at_writes
from tests.support.job_commands import Command
from tests.support.removable_data import CLIPS, SAMPLES, build, everything


def outcomes(data: Path) -> dict[str, tuple[str, str]]:
    rows = csv.DictReader((data / "report/inputs.csv").open())
    return {row["key"]: (row["outcome"], row["reason"]) for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_stays_out_of_the_data_set_over_the_same_source(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    data = Path(shutil.copytree(finished, tmp_path / "data"))
    source = Path(shutil.copytree(sample_source, tmp_path / "source"))
    before = ShardReader(data, split=None, kept=False).keys
    gone = next(key for key in before if "close" in key)
    (tmp_path / "keys").write_text(f"{gone}\n")
    done = command("orchestration", "remove", "--keys", tmp_path / "keys", "--data", data)
    assert f"{len(before)} samples before, 1 removed, {len(before) - 1} after" in done.stdout
    # The same bytes under another name, and other settings, by which everything that is not packed is made anew.
    original = next(source.glob("*close*"))
    shutil.copy(original, source / f"renamed{original.suffix}")
    for step in ("before gc", "after gc"):
        command("orchestration", "shards", "--source", source, "--data", data, "--ingest", "min_sightings=2")
        assert set(ShardReader(data, split=None, kept=False).keys) == set(before) - {gone}, step
        command("shards", "verify", "--data", data, "--deep")
        command("orchestration", "report", "--data", data)
        assert json.loads((data / "report/report.json").read_text())["errors"] == []
        found = outcomes(data)
        assert [key for key, fate in found.items() if fate == ("rejected", "removed")] == sorted(
            key for key in found if key == gone or "renamed" in key
        )
        command("orchestration", "gc", "--data", data)
    for tar in [*data.glob("clips-*.tar"), *data.glob("ann/*/*.tar")]:
        assert gone.encode() not in tar.read_bytes()
    # Once the files have left SOURCE and that was noticed, no file of DATA names them.
    assert any("close" in path or b"close" in content for path, content in contents_of(data))
    for file in (original, source / f"renamed{original.suffix}"):
        file.unlink()
    command("orchestration", "ingest", "--source", source, "--data", data)
    command("orchestration", "report", "--data", data)
    assert [path for path, content in contents_of(data) if "close" in path or b"close" in content] == []


def test_the_counts_are_told_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = build(tmp_path / "data").uri
    assert run("remove", "--person", "Ann Example", "--data", data, "--dry-run") == 0
    out, err = capfd.readouterr()
    assert "2 samples of 2 whole clips would go" in out and all(f"sample {key}" in err for key in SAMPLES[:2])
    assert len(everything(Storage(data))) == 6
    assert run("remove", "--person", "Ann Example", "--data", data) == 0
    out, err = capfd.readouterr()
    assert "6 samples before, 2 removed, 4 after" in out and "v1: 6 - 2 = 4 samples" in err
    assert run("gc", "--data", data, "--dry-run") == 0
    out, _ = capfd.readouterr()
    assert "2 removed samples would be taken out" in out
    assert run("gc", "--data", data) == 0
    out, err = capfd.readouterr()
    assert "2 removed samples taken out" in out and "removed samples out of shards" in err
    assert len(everything(Storage(data))) == 4


def test_a_removal_that_was_killed_is_finished_by_the_next_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = build(tmp_path / "data")
    pending = Pending(
        job="remove", path="removed/20261130T000000Z-00000000.json", salt="s", samples=[SAMPLES[0]], clips=[CLIPS[0]]
    )
    write_pending(storage, pending)
    assert run("retry", "--data", storage.uri) == 0
    assert "kept as" in capfd.readouterr().err
    assert set(everything(storage)) == set(SAMPLES[1:]) and find_pending(storage) is None
    assert storage.exists(pending.path) and not storage.exists(PENDING)


@pytest.mark.parametrize("by", ["person", "keys"])
def test_a_removal_that_was_killed_and_is_given_again_succeeds(
    by: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody of that name is left then; that the removal was done is the answer."""
    data, gone = build(tmp_path / "data"), SAMPLES[:2]
    assert data.local_root
    (tmp_path / "keys").write_text("\n".join(gone))
    call = ["--person", "Ann Example"] if by == "person" else ["--keys", str(tmp_path / "keys")]
    setup = "from orchestration.__main__ import main"
    work = f"main(['remove', *{call!r}, '--data', str(folder)])"
    nowhere = [tmp_path / "nowhere"] * 2  # after the cache of what is related, and the note
    assert die_at_writes([*nowhere, data.local_root], setup=setup, work=work)[2] == -signal.SIGKILL
    assert find_pending(data) and len(everything(data)) == len(SAMPLES)
    assert run("remove", *call, "--data", data.uri) == 0
    assert "6 samples before, 2 removed, 4 after" in capfd.readouterr().out
    assert set(everything(data)) == set(SAMPLES[2:])
    # Another one is begun after the one that is finished.
    assert run("remove", "--person", "Bob", "--data", data.uri) == 0
    assert "4 samples before, 2 removed, 2 after" in capfd.readouterr().out


def test_one_that_takes_nothing_out_of_shards_asks_for_no_collection(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = build(tmp_path / "data")
    (tmp_path / "keys").write_text(CLIPS[0])
    assert run("remove", "--keys", str(tmp_path / "keys"), "--data", data.uri) == 0
    assert "now make gc" in capfd.readouterr().out
    assert run("remove", "--keys", str(tmp_path / "keys"), "--data", data.uri) == 0
    assert "0 samples removed, of no finished version; 1 inputs rejected" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("remove",), "name a person"),
        (("remove", "--person", "x", "--keys", "y"), "name a person"),
        (("remove", "--person", "nobody"), "no clip of"),
        (("remove", "--keys", "nowhere"), "there is no file"),
    ],
)
def test_what_cannot_be_removed_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = build(tmp_path / "data").uri
    assert run(*arguments, "--data", data) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("command_name", ["remove --person x", "gc"])
def test_a_place_without_a_data_set_is_one_line_and_nothing_is_made(
    command_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*command_name.split(), "--data", str(tmp_path / "none")) == 2
    assert not (tmp_path / "none").exists()
    assert capfd.readouterr().err.count("error: ") == 1


def run(*arguments: str) -> int:
    """Run a command in this process."""
    return main(list(arguments))
