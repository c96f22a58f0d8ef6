"""Every kind of damage to a data set is found: each test damages a copy for real."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from shards.__main__ import main
from shards.index import build_index, write_index
from shards.manifest import read_manifest, write_manifest
from shards.verify import VerifyReport, verify
from talkinghead.annotation import COLUMN, encode_column
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file
from tests.support.indexes import open_index
from tests.support.shard_data import LENGTHS, clip_arrays, media_contents, sample_key

CLIPS, ANN = "clips-000001.tar", "ann/v1/ann-000001.tar"


def kinds(report: VerifyReport) -> set[tuple[str, str]]:
    return {(problem.file, problem.kind) for problem in report.problems}


def adopt(storage: Storage, *names: str) -> None:
    """Let `DATASET.json` name the shards as they are now, so that only a check of the contents can find the damage."""
    manifest = read_manifest(storage)
    entry = manifest.annotation()

    def renew(shards):
        return [
            dataclasses.replace(s, sha256=hash_file(storage.local_root / s.name), size=storage.size(s.name))
            if s.name in names
            else s
            for s in shards
        ]

    write_manifest(
        storage,
        dataclasses.replace(
            manifest,
            media=renew(manifest.media),
            annotations=[dataclasses.replace(entry, shards=renew(entry.shards))],
        ),
    )


def edit_rows(storage: Storage, change: Callable[[list], None]) -> None:
    """Rewrite the index and let `DATASET.json` name the new one."""
    rows = list(open_index(storage, "v1").rows())
    change(rows)
    manifest = read_manifest(storage)
    storage.delete(manifest.annotation().index)
    path, sha256 = write_index(storage, build_index("v1", rows))
    entry = dataclasses.replace(manifest.annotation(), index=path, index_sha256=sha256)
    write_manifest(storage, dataclasses.replace(manifest, annotations=[entry]))


def test_whole_data_set_is_clean(built):
    for deep, decoded in ((False, 3), (True, len(LENGTHS))):
        report = verify(built, deep=deep)
        assert report.ok, report.problems
        assert (report.shards, report.samples, report.frames) == (6, len(LENGTHS), sum(LENGTHS))
        assert (report.decoded, report.unknown) == (decoded, [])
    remote = verify(Storage(f"file://{built.local_root}"), version="v1")
    assert remote.ok and remote.bytes == report.bytes


@pytest.mark.parametrize("name", [CLIPS, ANN, "index"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_one_flipped_bit(copied, name, where):
    name = read_manifest(copied).annotation().index if name == "index" else name
    path = copied.local_root / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)
    assert (name, "sha256") in kinds(verify(copied))


@pytest.mark.parametrize("name", [CLIPS, ANN])
@pytest.mark.parametrize("missing", [1, 1024, 5000])
def test_truncated_shard(copied, name, missing):
    path = copied.local_root / name
    path.write_bytes(path.read_bytes()[:-missing])
    assert {(name, "size"), (name, "sha256"), (name, "unreadable")} <= kinds(verify(copied))
    adopt(copied, name)
    assert (name, "unreadable") in kinds(verify(copied))


@pytest.mark.parametrize("name", [CLIPS, ANN, "index"])
def test_missing_file(copied, name):
    name = read_manifest(copied).annotation().index if name == "index" else name
    copied.delete(name)
    assert (name, "missing") in kinds(verify(copied))


@pytest.mark.parametrize("pattern", ["clips-{}.tar", "ann/v1/ann-{}.tar"])
def test_swapped_shards(copied, pattern):
    a, b = (copied.local_root / pattern.format(number) for number in ("000000", "000001"))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    assert (CLIPS if "clips" in pattern else ANN, "sha256") in kinds(verify(copied))
    adopt(copied, *(pattern.format(number) for number in ("000000", "000001")))
    assert (pattern.format("000000"), "order") in kinds(verify(copied))


@pytest.mark.parametrize("name", [CLIPS, ANN])
@pytest.mark.parametrize("how", ["drop sample", "swap samples", "drop member", "swap members", "rename", "add member"])
def test_edited_shard(copied, edit_shard, name, how):
    def change(samples):
        key, contents = samples[1]
        match how:
            case "drop sample":
                del samples[1]
            case "swap samples":
                samples[0], samples[1] = samples[1], samples[0]
            case "drop member":
                del contents[list(contents)[1]]
            case "swap members":
                first = next(iter(contents))
                contents[first] = contents.pop(first)
            case "rename":
                samples[1] = (key.replace("abcd", "abce"), contents)
            case "add member":
                contents["txt"] = b"surplus"

    edit_shard(copied, name, change)
    adopt(copied, name)
    found = {kind for file, kind in kinds(verify(copied)) if file == name}
    assert found & {"order", "members"}, found
    if how == "drop sample":
        assert "counts" in found


def _change_json(contents: dict[str, bytes], **changes) -> None:
    contents["json"] = json.dumps(json.loads(contents["json"]) | changes).encode()


def _change_column(contents: dict[str, bytes], number: int, name: str, change: Callable) -> None:
    contents[f"{name}.npy"] = encode_column(COLUMN[name], change(clip_arrays(number)[name]))


CONTENT_DAMAGE = {
    "json of another sample": (CLIPS, lambda c, n: _change_json(c, key="folder-other")),
    "json of another length": (CLIPS, lambda c, n: _change_json(c, num_frames=LENGTHS[n] + 1)),
    "json of another person": (CLIPS, lambda c, n: _change_json(c, person="somebody")),
    "json of another licence": (CLIPS, lambda c, n: _change_json(c, licence="unknown")),
    "json of another schema": (CLIPS, lambda c, n: _change_json(c, schema_version=7)),
    "json cut": (CLIPS, lambda c, n: c.update(json=c["json"][:50])),
    "wav one sample short": (CLIPS, lambda c, n: c.update(wav=c["wav"][:-2])),
    "wav of another clip": (CLIPS, lambda c, n: c.update(wav=media_contents((n + 1) % len(LENGTHS))["wav"])),
    "wav rate": (CLIPS, lambda c, n: c.update(wav=c["wav"][:24] + b"\0\0\0\0" + c["wav"][28:])),
    "npy one frame short": (ANN, lambda c, n: _change_column(c, n, "mesh", lambda v: v[:-1])),
    "npy cut": (ANN, lambda c, n: c.update({"pose.npy": c["pose.npy"][:-5]})),
    "npy of objects": (ANN, lambda c, n: c.update({"pose.npy": c["pose.npy"].replace(b"'<f4'", b"'|O' ")})),
    "valid against NaN": (ANN, lambda c, n: _change_column(c, n, "valid", np.logical_not)),
    "NaN against valid": (ANN, lambda c, n: _change_column(c, n, "landmarks", np.nan_to_num)),
    "ann.json cut": (ANN, lambda c, n: c.update({"ann.json": b"{"})),
}


@pytest.mark.parametrize("damage", CONTENT_DAMAGE)
def test_contents_that_do_not_agree(copied, edit_shard, damage):
    """The writer itself was wrong: hashes and counts agree, contents do not."""
    name, change = CONTENT_DAMAGE[damage]
    keys: list[str] = []

    def edit(samples):
        key, contents = next(s for s in samples if s[0] != sample_key(5))
        keys.append(key)
        change(contents, int(key.split("_")[1][:2]))

    edit_shard(copied, name, edit)
    adopt(copied, name)
    found = [problem for problem in verify(copied).problems if problem.kind == "content"]
    assert [(problem.file, problem.key) for problem in found] == [(name, keys[0])], found


@pytest.mark.parametrize("how", ["other frames", "cut", "garbage", "fewer frames", "with audio"])
def test_damaged_video_is_found_by_deep(copied, edit_shard, how):
    def edit(samples):
        for _, contents in samples:
            mp4 = contents["mp4"]
            contents["mp4"] = {
                "other frames": mp4[:600] + bytes(len(mp4) - 600),
                "cut": mp4[: len(mp4) * 3 // 4],
                "garbage": b"x" * len(mp4),
                "fewer frames": media_contents(5)["mp4"],
                "with audio": contents["wav"],
            }[how]

    edit_shard(copied, CLIPS, edit)
    adopt(copied, CLIPS)
    report = verify(copied, deep=True)
    bad = [problem.key for problem in report.problems if problem.kind == "content" and "mp4" in problem.detail]
    assert set(bad) >= {row.key for row in open_index(copied, "v1").rows() if row.shard == 1} - {sample_key(5)}
    assert [p.kind for p in verify(copied).problems].count("content") == 1  # not deep: one of the shard was decoded


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda rows: rows.pop(), "order"),
        (lambda rows: rows.append(dataclasses.replace(rows[-1], key="x", ordinal=rows[-1].ordinal + 1)), "order"),
        (lambda rows: _replace(rows, 3, media=[_moved(member) for member in rows[3].media]), "members"),
        (lambda rows: _replace(rows, 3, annotation=[]), "members"),
        (lambda rows: _replace(rows, 3, num_frames=rows[3].num_frames + 1), "content"),
        (lambda rows: _replace(rows, 3, licence="MIT"), "content"),
        (lambda rows: _replace(rows, 3, split="test"), "splits"),
        (lambda rows: _replace(rows, 3, keep=not rows[3].keep, reason="blur" if rows[3].keep else None), "counts"),
    ],
    ids=["row missing", "row too many", "offset", "no annotation", "frames", "licence", "split", "keep"],
)
def test_edited_index(copied, change, kind):
    edit_rows(copied, change)
    assert kind in {kind for _, kind in kinds(verify(copied))}


def _moved(member):
    return dataclasses.replace(member, offset=member.offset + 1)


def _replace(rows, number, **changes):
    rows[number] = dataclasses.replace(rows[number], **changes)


def test_versions_that_disagree(copied):
    rows = list(open_index(copied, "v1").rows())
    manifest = read_manifest(copied)
    for name, changed in (("same", rows), ("other", [dataclasses.replace(row, split_group="g") for row in rows])):
        path, sha256 = write_index(copied, build_index("v2", changed))
        entry = dataclasses.replace(manifest.annotation(), version="v2", index=path, index_sha256=sha256, shards=[])
        write_manifest(copied, dataclasses.replace(manifest, annotations=[*manifest.annotations, entry]))
        assert (("index of v2", "versions") in kinds(verify(copied))) == (name == "other")


def test_unknown_files_are_listed_not_problems(copied):
    for name in ("clips-000009.tar", "ann/old/ann-000000.tar", "index/v0.parquet", "tmp/abc", "notes.txt"):
        copied.write(name, b"?")
    report = verify(copied)
    assert report.ok
    assert sorted(report.unknown) == sorted(
        ["clips-000009.tar", "ann/old/ann-000000.tar", "index/v0.parquet", "tmp/abc", "notes.txt"]
    )


def test_command(copied, capfd):
    data = str(copied.local_root)
    assert main(["verify", "--data", data, "--deep"]) == 0
    assert ": ok, 9 samples" in capfd.readouterr().out.splitlines()[-1]
    assert main(["ls", "--data", data]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(LENGTHS) and sum(line.endswith("no_face=0") for line in lines) == 1
    copied.delete(ANN)
    assert main(["verify", "--data", data]) == 1
    captured = capfd.readouterr()
    assert f"problem: {ANN}: is not there" in captured.err and "1 problems" in captured.out
    assert captured.err.splitlines()[-1].startswith(f"error: 1 problems in {data}: ")
    assert main(["verify", "--data", data, "--version", "v7"]) == 2
    assert capfd.readouterr().err.startswith("error: there is no annotation version 'v7'")
    with pytest.raises(SystemExit) as wrong:
        main(["verify"])
    assert wrong.value.code == 2
