"""What happens to a finished data set when sources, settings, libraries or fortune change."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestration.outcomes import current_quarantine
from shards.manifest import read_manifest
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from tests.support.indexes import open_index
from tests.support.job_commands import ROOT, Command, digests


@pytest.fixture
def data(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "data"))


@pytest.fixture
def source(sample_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_source, tmp_path / "source"))


def sound(data: Path, command: Command) -> dict[str, object]:
    """Verify and report must be content with whatever a test has done; returns the report's numbers."""
    command("shards", "verify", "--data", data)
    command("orchestration", "report", "--data", data)
    numbers = json.loads((data / "report/report.json").read_text())
    assert numbers["errors"] == [] and numbers["pending"] == 0
    return numbers


def clip_files(source: Path) -> list[Path]:
    return sorted(source.glob("astronaut*"))


@pytest.mark.slow
def test_a_smaller_limit_and_gone_sources_leave_packed_clips_alone(
    data: Path, source: Path, finished: Path, command: Command
) -> None:
    before = digests(data)
    kept = read_manifest(Storage(data)).counts["kept"]
    command("orchestration", "shards", "--source", source, "--data", data, "--limit", 1)
    assert sound(data, command)["samples"] == kept
    clip_files(source)[0].unlink()
    clip_files(source)[0].rename(source / "renamed.mkv")
    done = command("orchestration", "shards", "--source", source, "--data", data)
    assert "no longer in SOURCE" in done.stderr
    numbers = sound(data, command)
    assert {name: digest for name, digest in digests(data).items() if name in before} == before
    rows = {row["input"]: row["outcome"] for row in csv.DictReader((data / "report/inputs.csv").open())}
    assert rows["folder:astronaut-close.mp4"] == rows["folder:renamed.mkv"] == "sample"
    assert numbers["samples"] == kept  # a renamed file keeps its key
    command("orchestration", "reannotate", "--data", data, "--version", "v2")
    sound(data, command)


@pytest.mark.slow
def test_settings_stay_as_they_were_made(data: Path, source: Path, command: Command) -> None:
    command("orchestration", "shards", "--data", data, "--shards", "seed=5", "--filters", "max_yaw_abs_median=30")
    command("orchestration", "shards", "--source", source, "--data", data)
    manifest = read_manifest(Storage(data))
    assert manifest.annotation().details["filters"]["max_yaw_abs_median"] == 30
    splits = list(open_index(Storage(data), "v1").texts("split"))
    command("orchestration", "reannotate", "--data", data, "--version", "v2", "--annotate", "detector_every=2")
    assert list(open_index(Storage(data), "v2").texts("split")) == splits
    manifest = read_manifest(Storage(data))
    assert manifest.annotation("v2").details["filters"]["max_yaw_abs_median"] == 30
    sound(data, command)
    seed = command("orchestration", "shards", "--data", data, "--shards", "seed=6", check=False)
    assert seed.returncode == 2 and "splits must agree" in seed.stderr
    other = command("orchestration", "ingest", "--source", source, "--data", data, "--ingest", "size=256", check=False)
    assert other.returncode == 2 and "size 512" in other.stderr
    wrong = command("orchestration", "shards", "--data", data, "--shards", "seed=x", check=False)
    assert wrong.returncode == 2 and "seed=x" in wrong.stderr


@pytest.mark.slow
def test_a_newer_job_version_leaves_packed_samples_alone(data: Path, source: Path, command: Command) -> None:
    """As after an update of this code or of a library: new clips come in, packed ones stay, nothing is refused."""
    before = digests(data)
    (source / "hair-cut01.mp4").write_bytes(clip_files(source)[0].read_bytes() + 2 * b"\0\0\0\x08free")
    code = textwrap.dedent("""
        import sys
        from orchestration.jobs import annotate, ingest
        annotate.VERSION = ingest.VERSION = 99
        from orchestration.__main__ import main
        sys.exit(main(sys.argv[1:]))
    """)
    arguments = ["shards", "--source", str(source), "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stay as they are" in done.stderr
    after = digests(data)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    sound(data, command)


@pytest.mark.slow
def test_failed_annotation_is_a_blank_row_and_a_late_success_changes_nothing(data: Path, command: Command) -> None:
    storage = Storage(data)
    quarantined = len(current_quarantine(storage))
    record = next((data / "records/ingest").rglob("*astronaut-wide*.json"))
    members = {m["suffix"]: m for m in json.loads(record.read_text())["samples"][0]["members"]}
    tar = Path(data / json.loads(record.read_text())["file"])
    packed = next(path for path in data.glob("clips-*.tar") if b"astronaut-wide" in path.read_bytes())
    place = packed.read_bytes().index(tar.read_bytes()[members["mp4"]["offset"] : members["mp4"]["offset"] + 64])
    whole = packed.read_bytes()
    packed.write_bytes(whole[:place] + bytes(5000) + whole[place + 5000 :])
    command("orchestration", "reannotate", "--data", data, "--version", "v2", "--annotate", "detector_every=2")
    rows = {row.key: row for row in open_index(storage, "v2").rows()}
    failed = [row for row in rows.values() if row.reason == "annotate_failed"]
    assert len(failed) == 1 and "wide" in failed[0].key and len(current_quarantine(storage)) == quarantined + 1
    packed.write_bytes(whole)
    sound(data, command)
    before = digests(data)
    command("orchestration", "retry", "--data", data)
    done = command("orchestration", "reannotate", "--data", data, "--version", "v2")
    assert "only after their shard of v2 was packed" in done.stderr
    assert digests(data) == before
    command("orchestration", "reannotate", "--data", data, "--version", "v3")
    assert not [row for row in open_index(storage, "v3").rows() if row.reason == "annotate_failed"]


@pytest.mark.slow
def test_a_damaged_unit_is_not_packed(sample_source: Path, tmp_path: Path, command: Command) -> None:
    data, source = tmp_path / "data", tmp_path / "source"
    source.mkdir()
    shutil.copy(clip_files(sample_source)[0], source)
    command("orchestration", "ingest", "--source", source, "--data", data)
    command("orchestration", "annotate", "--data", data)
    unit = next((data / "units/ingest").rglob("*.tar"))
    content = bytearray(unit.read_bytes())
    content[-20_000] ^= 1
    unit.write_bytes(content)
    done = command("orchestration", "shards", "--data", data, check=False)
    assert done.returncode == 2 and "is damaged" in done.stderr
    again = command("orchestration", "shards", "--data", data, check=False)
    assert again.returncode == 2 and "could not be packed" in again.stderr
    assert not list(data.glob("clips-*.tar"))


@pytest.mark.slow
def test_mended_input_leaves_the_quarantine(data: Path, source: Path, command: Command) -> None:
    shutil.copy(clip_files(source)[0], source / "notes.mp4")
    command("orchestration", "shards", "--source", source, "--data", data)
    assert not [record for record in current_quarantine(Storage(data)) if "notes" in record.source]
    sound(data, command)


@pytest.mark.parametrize("writes", range(1, 5))
def test_death_at_any_write_of_the_finish(data: Path, writes: int, command: Command) -> None:
    """The process ends at its n-th write: readers see the old data set or the new one, and a rerun ends it."""
    code = textwrap.dedent("""
        import os, sys
        from talkinghead.files.storage import Storage
        left, commit = int(sys.argv.pop(1)), Storage._commit
        def dying(self, temporary, path):
            global left
            left -= 1
            if left == 0:
                os._exit(9)
            commit(self, temporary, path)
        Storage._commit = dying
        from orchestration.__main__ import main
        sys.exit(main(sys.argv[1:]))
    """)
    change = ["shards", "--data", str(data), "--filters", "max_yaw_abs_median=0.001"]
    done = subprocess.run([sys.executable, "-c", code, str(writes), *change], cwd=ROOT, timeout=240, check=False)
    threshold = read_manifest(Storage(data)).annotation().details["filters"]["max_yaw_abs_median"]
    reader = ShardReader(data, split=None)
    assert (len(reader) == 0) == (threshold == 0.001)
    assert done.returncode in (0, 9)
    command("orchestration", *change)
    sound(data, command)
    assert len(list((data / "index").iterdir())) <= 2
