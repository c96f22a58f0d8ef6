"""The catalog table, its limit, the fingerprints of the sources, and the commands."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import fingerprints
from ingest.__main__ import main
from ingest.catalog import Catalog, build_catalog, read_catalog, write_catalog
from ingest.fingerprints import Fingerprint, fingerprint, read_fingerprints, write_fingerprints
from ingest.source_listing import Problem
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import CATALOG_SCHEMA, DATASETS, CatalogRow
from tests.support.paths import ROOT

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
optional_text = st.none() | text


@st.composite
def catalog_rows(draw: st.DrawFn, dataset: str) -> CatalogRow:
    start = draw(st.none() | st.floats(0, 1e5))
    name = st.binary(min_size=1, max_size=12).filter(lambda b: b"\0" not in b).map(os.fsdecode)
    name = name.filter(lambda path: not path.startswith("/") and ".." not in path.split("/"))
    return CatalogRow(
        key=draw(st.from_regex(r"[A-Za-z0-9_-]{1,90}", fullmatch=True)),
        dataset=dataset,
        source_id=draw(text),
        source=draw(st.none() | name),
        url=draw(optional_text),
        start_s=start,
        end_s=None if start is None else start + draw(st.floats(0.1, 100)),
        box=draw(st.none() | st.tuples(finite, finite, finite, finite)),
        box_width=draw(st.none() | finite),
        box_height=draw(st.none() | finite),
        frame_fps=draw(st.none() | finite),
        person=draw(optional_text),
        split_group=draw(text),
        licence=draw(text),
        terms_url=draw(optional_text),
        notes=tuple(draw(st.lists(text, max_size=3))),
        attributes=draw(text),
        adapter_version=draw(st.integers(0, 2**31 - 1)),
    )


problems = st.builds(Problem, file=text, line=st.none() | st.integers(1, 10**6), message=text)


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    dataset = draw(st.sampled_from(DATASETS))
    rows = draw(st.lists(catalog_rows(dataset), max_size=4, unique_by=lambda row: row.key))
    return Catalog(
        dataset=dataset,
        rows=sorted(rows, key=lambda row: row.key),
        problems=draw(st.lists(problems, max_size=3)),
        unused=tuple(draw(st.lists(text, max_size=3))),
        left_out=draw(st.integers(0, 9)),
    )


@settings(deadline=None, max_examples=60)
@given(catalogs())
def test_parquet_round_trip_is_exact_and_deterministic(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog):
    storage = Storage(tmp_path_factory.mktemp("data"))
    path = write_catalog(storage, catalog)
    first = storage.read(path)
    assert read_catalog(storage, catalog.dataset) == catalog
    write_catalog(storage, catalog)
    assert storage.read(path) == first
    assert pq.read_schema(storage.describe(path)).equals(CATALOG_SCHEMA)


def test_rows_are_sorted_and_a_collision_is_a_problem(tmp_path: Path):
    csv = tmp_path / "clips.csv"
    line = '{},aaaaaaaaaaa,aaaaaaaaaaa_{}.mp4,"(1, 2)","[0, 1, 0, 1]"\n'
    csv.write_text(",VideoId,SaveIdName,Time,Bbox\n" + line.format(0, 9) + line.format(1, 10) + line.format(2, 1))
    assert [row.key[-2:] for row in build_catalog("celebv-hq", tmp_path).rows] == ["_1", "10", "_9"]
    csv.write_text(csv.read_text() + line.format(3, 9))
    catalog = build_catalog("celebv-hq", tmp_path)
    assert [row.key[-2:] for row in catalog.rows] == ["_1", "10", "_9"]
    assert "two clips have the key celebv-hq-aaaaaaaaaaa_9" in catalog.problems[0].message


def test_limit_prefers_clips_whose_video_is_there(tmp_path: Path):
    (tmp_path / "RD_annotion_time.txt").write_text("".join(f"V{i}.mp4 00:01-00:05\n" for i in range(9)))
    assert [row.source_id for row in build_catalog("hdtf", tmp_path, limit=2).rows] == ["RD_V0", "RD_V1"]
    for name in ("V3.mp4", "V7.mp4", "V8.mp4"):
        (tmp_path / name).touch()
    catalog = build_catalog("hdtf", tmp_path, limit=2)
    assert [row.source for row in catalog.rows] == ["V3.mp4", "V7.mp4"]
    assert (catalog.left_out, catalog.missing_source, catalog.unused) == (7, 0, ())
    assert [row.source_id for row in build_catalog("hdtf", tmp_path, limit=4).rows] == [
        "RD_V0",
        "RD_V3",
        "RD_V7",
        "RD_V8",
    ]


def test_missing_metadata_names_the_files(tmp_path: Path):
    for dataset, file in (("hdtf", "annotion_time"), ("celebv-hq", "celebvhq_info.json"), ("vfhq", "meta_info.zip")):
        with pytest.raises(ValueError, match=file):
            build_catalog(dataset, tmp_path)


def test_broken_tables(tmp_path: Path):
    storage = Storage(tmp_path)
    with pytest.raises(ValueError, match=r"no catalog at .*: make ingest DATASET=hdtf SOURCE="):
        read_catalog(storage, "hdtf")
    storage.write(dataroot.catalog("hdtf"), b"PAR1 cut short")
    with pytest.raises(ValueError, match="is no readable table"):
        read_catalog(storage, "hdtf")
    storage.write(dataroot.sources("hdtf"), b"PAR1 cut short")
    assert read_fingerprints(storage, "hdtf") == {}


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed, in order."""
    names: list[str] = []
    real = fingerprints.hash_file

    def spy(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(fingerprints, "hash_file", spy)
    return names


def test_fingerprints_are_hashed_once(tmp_path: Path, hashed: list[str]):
    source = tmp_path / "in"
    (source / "frames").mkdir(parents=True)
    names = ["a.mp4", "undecodable\udcff.mp4", "frames/1.png", "frames/2.png"]
    for name in names:
        (source / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    paths = ["undecodable\udcff.mp4", "frames", "a.mp4"]
    first = fingerprint(source, paths)
    assert list(first) == sorted(paths)
    assert first["a.mp4"].sha256 == hashlib.sha256(b"a.mp4").hexdigest()
    assert len(hashed) == 4
    storage = Storage(tmp_path / "data")
    path = write_fingerprints(storage, "folder", first)
    table = storage.read(path)
    known = read_fingerprints(storage, "folder")
    assert known == first
    hashed.clear()
    told: list[Fingerprint] = []
    again = fingerprint(source, paths, known, on_hashed=told.append)
    assert (hashed, told, again) == ([], [], first)
    write_fingerprints(storage, "folder", again)
    assert storage.read(path) == table
    assert fingerprint(source, paths, known, rehash=True) == first
    assert len(hashed) == 4


def test_fingerprint_follows_content_not_place_or_time(tmp_path: Path, hashed: list[str]):
    for folder in ("one", "two"):
        (tmp_path / folder / "frames").mkdir(parents=True)
        for name in ("b.png", "a.png"):
            (tmp_path / folder / "frames" / name).write_text(name)
    one, two = (fingerprint(tmp_path / folder, ["frames"])["frames"] for folder in ("one", "two"))
    assert one.sha256 == two.sha256
    frame = tmp_path / "one" / "frames" / "a.png"
    status = frame.stat()
    frame.write_text("A.png")
    os.utime(frame, ns=(status.st_mtime_ns - 10**9, status.st_mtime_ns - 10**9))  # same size, older than the newest
    changed = fingerprint(tmp_path / "one", ["frames"], {"frames": one})["frames"]
    assert changed.sha256 != one.sha256
    os.utime(frame)
    hashed.clear()
    touched = fingerprint(tmp_path / "one", ["frames"], {"frames": changed})["frames"]
    assert len(hashed) == 2
    assert touched.sha256 == changed.sha256


def test_what_cannot_be_read_has_the_error(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good").write_text("good")
    result = fingerprint(tmp_path, ["gone.mp4", "loop", "pipe", "good"])
    assert {path: entry.sha256 is None for path, entry in result.items()} == {
        "gone.mp4": True,
        "good": False,
        "loop": True,
        "pipe": True,
    }
    assert "No such file" in str(result["gone.mp4"].error)
    assert "symbolic links" in str(result["loop"].error)
    storage = Storage(tmp_path / "data")
    write_fingerprints(storage, "folder", result)
    assert read_fingerprints(storage, "folder") == result
    (tmp_path / "gone.mp4").write_text("back")
    assert fingerprint(tmp_path, ["gone.mp4"], result)["gone.mp4"].error is None


def test_progress_counts_what_is_hashed(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(3 << 20))
    known = fingerprint(tmp_path, ["a"])
    told: list[tuple[str, int, int]] = []
    fingerprint(tmp_path, ["a", "b"], known, on_progress=lambda *state: told.append(state))
    assert [state[1:] for state in told if "(MiB)" in state[0]] == [(3, 3)]


def test_a_file_that_grows_while_it_is_read_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.mp4"
    file.write_text("a")

    def grow(path: Path) -> str:
        path.write_text("still being copied")
        return "0"

    monkeypatch.setattr(fingerprints, "hash_file", grow)
    assert "changed while it was read" in str(fingerprint(tmp_path, ["a.mp4"])["a.mp4"].error)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_catalog_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.mp4").touch()
    data = tmp_path / "data"
    assert main(["catalog", "--dataset", "folder", "--source", str(source), "--data", str(data)]) == 0
    out, err = capfd.readouterr()
    assert out == f"{data / 'catalog' / 'folder.parquet'}\n"
    assert "folder: 1 clips" in err
    assert len(read_catalog(Storage(data), "folder").rows) == 1
    assert main(["catalog", "--dataset", "hdtf", "--source", str(source), "--data", str(data)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: no hdtf metadata in")
    assert err.count("\n") == 1
    (data / "catalog" / "folder.parquet").unlink()
    (data / "catalog").rmdir()
    (data / "catalog").touch()
    assert main(["catalog", "--dataset", "folder", "--source", str(source), "--data", str(data)]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("command", ["catalog", "download", "sample"])
def test_help_and_usage_errors(command: str, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--help" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2


def test_catalog_does_not_import_heavy_modules():
    code = (
        "import sys, ingest.__main__\n"
        "heavy = {'mediapipe', 'ray', 'torch', 'cv2', 'yt_dlp', 'webdataset'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    root = ROOT
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=240)
