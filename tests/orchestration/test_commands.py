"""The whole data side by its own commands, on the embedded sample."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from shards.manifest import read_manifest
from talkinghead.files.storage import Storage
from tests.support.indexes import open_index
from tests.support.job_commands import ROOT, Command, digests
from tests.support.small_disk import run_with_mounts


def test_every_input_is_accounted_for(finished: Path, sample_source: Path, command: Command) -> None:
    done = command("orchestration", "report", "--data", finished)
    assert done.stdout.strip() == str(finished / "report/index.html")
    report = json.loads((finished / "report/report.json").read_text())
    rows = list(csv.DictReader((finished / "report/inputs.csv").open()))
    files = [path for path in sample_source.iterdir() if not path.name.startswith(".")]
    assert report["inputs"] == len(rows) == len(files)
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes["sample"] + outcomes["rejected"] + outcomes["quarantined"] == len(files)
    assert outcomes["sample"] >= 4 and outcomes["rejected"] >= 1 and outcomes["quarantined"] >= 2
    assert report["errors"] == []
    assert sum(report["rejected"].values()) == outcomes["rejected"]
    assert sum(report["quarantined"].values()) == outcomes["quarantined"]
    index = open_index(Storage(finished), "v1")
    assert report["samples"] == int(index.numbers("keep").sum())
    assert report["model_sha256"] and report["annotation_version"] == "v1"
    for job in ("ingest", "annotate-v1"):
        assert (
            report["jobs"][job]["units"] and report["jobs"][job]["seconds"] and report["jobs"][job]["cpu_ms_per_frame"]
        )
    assert not list(ROOT.rglob("pwned")) and not list(sample_source.rglob("pwned"))


def test_shards_verify_deeply(finished: Path, command: Command) -> None:
    done = command("shards", "verify", "--data", finished, "--deep")
    assert "ok" in done.stdout


def test_second_command_does_nothing(finished: Path, sample_source: Path, command: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.tar")}
    done = command("orchestration", "shards", "--source", sample_source, "--data", finished, "--shards", "min_shards=2")
    assert done.stderr.count(" 0 done now, 0 quarantined") == 4
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.tar")} == before
    assert "Ray" not in done.stderr, "a rerun with nothing to do does not start Ray"


def test_new_thresholds_apply_without_reading_media(finished: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished, data)
    for tar in [*data.glob("*.tar"), *data.glob("ann/*/*.tar"), *data.glob("units/**/*.tar")]:
        tar.write_bytes(b"")  # nothing may be read from them
    command("orchestration", "shards", "--data", data, "--filters", "max_yaw_abs_median=0.001")
    manifest = read_manifest(Storage(data))
    assert manifest.counts["kept"] == 0 and manifest.counts["samples"] > 0
    assert manifest.annotation().details["filters"]["max_yaw_abs_median"] == 0.001
    reasons = {row.reason for row in open_index(Storage(data), "v1").rows()}
    assert "profile" in reasons
    wrong = command("orchestration", "shards", "--data", data, "--filters", "yaw=1", check=False)
    assert wrong.returncode == 2 and "max_yaw_abs_median" in wrong.stderr


def test_reannotation_leaves_media_untouched(finished: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished, data)
    shutil.rmtree(data / "units/ingest")  # the clips are in the shards; their units are not needed any more
    media = digests(data, "0*.tar")
    command("orchestration", "reannotate", "--data", data, "--version", "v2", "--annotate", "detector_every=2")
    after = digests(data, "0*.tar")
    assert {name: after[name] for name in media} == media
    manifest = read_manifest(Storage(data))
    assert [entry.version for entry in manifest.annotations] == ["v1", "v2"]
    assert manifest.annotation("v2").details["settings"]["detector_every"] == 2
    first, second = (open_index(Storage(data), version) for version in ("v1", "v2"))
    assert list(first.texts("key")) == list(second.texts("key"))
    command("shards", "verify", "--data", data, "--deep")
    command("orchestration", "report", "--data", data)
    assert json.loads((data / "report/report.json").read_text())["previous_version"] == "v1"
    # The same name with other settings would mix two annotations in one version.
    clash = command(
        "orchestration", "annotate", "--data", data, "--version", "v2", "--annotate", "detector_every=3", check=False
    )
    assert clash.returncode == 2 and "make reannotate ANN=" in clash.stderr


def test_new_clips_come_after_the_packed_ones(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    data, source = tmp_path / "data", tmp_path / "source"
    shutil.copytree(finished, data)
    shutil.copytree(sample_source, source)
    before = digests(data)
    first = sorted(sample_source.glob("astronaut*"))[0]
    (source / "one more.mp4").write_bytes(first.read_bytes() + 2 * b"\0\0\0\x08free")  # equal bytes are one input
    command("orchestration", "shards", "--source", source, "--data", data)
    after = digests(data)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    command("shards", "verify", "--data", data)


def test_changed_source_is_noticed(finished: Path, sample_source: Path, tmp_path: Path, command: Command) -> None:
    data, source = tmp_path / "data", tmp_path / "source"
    shutil.copytree(finished, data)
    shutil.copytree(sample_source, source)
    clips = sorted(source.glob("astronaut*"))
    shutil.copy(clips[1], clips[0])
    done = command("orchestration", "shards", "--source", source, "--data", data, check=False)
    assert done.returncode == 2 and "has changed since its clip was packed" in done.stderr
    assert digests(data) == digests(finished)


def test_quarantine_is_listed_and_released_by_cause(finished: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished, data)
    listed = command("orchestration", "quarantine", "--data", data)
    assert "empty.mp4" in listed.stderr and "notes.mp4" in listed.stderr
    wrong = command("orchestration", "retry", "--data", data, "--cause", "no such cause", check=False)
    assert wrong.returncode == 2 and "there is:" in wrong.stderr
    command("orchestration", "retry", "--data", data)
    assert command("orchestration", "quarantine", "--data", data).stdout.strip() == "0 in quarantine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ingest", "--data", "x"], "SOURCE is missing"),
        (["ingest", "--data", "x", "--source", "/no/such/folder"], "/no/such/folder"),
        (["report", "--data", "/no/such/data"], "make shards"),
        (["shards", "--data", "/dev/null/data", "--source", "/tmp"], "cannot write"),
        (["annotate", "--data", "x"], "nothing is ingested"),
        (["reannotate", "--data", "x", "--version", "../v2"], "annotation version"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, tmp_path: Path, command: Command) -> None:
    arguments = [str(tmp_path / "data") if argument == "x" else argument for argument in arguments]
    done = command("orchestration", *arguments, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_full_disk_stops_with_one_line_and_resumes(sample_source: Path, tmp_path: Path, command: Command) -> None:
    """On a real file system of 2.5 MB: the job stops, nothing is quarantined, and more room finishes it."""
    mount = tmp_path / "small"
    mount.mkdir()
    shards = f"'{sys.executable}' -m orchestration shards --source '{sample_source}' --data '{mount}/data' --workers 2"
    commands = f"""
mount -t tmpfs -o size=2500k none '{mount}' || exit 77
{shards}; echo "first: $?"
mount -o remount,size=200m '{mount}'
{shards}; echo "second: $?"
'{sys.executable}' -m orchestration quarantine --data '{mount}/data'
'{sys.executable}' -m shards verify --data '{mount}/data'
"""
    done = run_with_mounts(commands, timeout=280)
    assert "first: 1" in done.stdout and "second: 0" in done.stdout, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "No space left on device" in lines[0]
    assert "3 in quarantine" in done.stdout, "the broken, the empty and the text file; a full disk quarantines nothing"
    assert "ok, " in done.stdout, "verified"
