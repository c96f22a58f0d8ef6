"""Every kind of damage to a data set is found: each test damages a copy for real."""

from __future__ import annotations

import dataclasses
import gzip
import json
import tarfile
from collections.abc import Callable

import numpy as np
import pytest

from shards.__main__ import main
from shards.index import build_index, write_index
from shards.layout import check_wav_header
from shards.manifest import read_manifest, write_manifest
from shards.verify import VerifyReport, verify
from talkinghead.annotation import COLUMN
from talkinghead.column import encode_column
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file
from talkinghead.sampletar import END_OF_ARCHIVE, member_bytes, member_header
from tests.support.indexes import edit_rows, open_index
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


STRANGE_TARS = {
    "link": lambda info: (setattr(info, "type", tarfile.SYMTYPE), setattr(info, "linkname", "/etc/passwd")),
    "device": lambda info: setattr(info, "type", tarfile.CHRTYPE),
    "upwards": lambda info: setattr(info, "name", "../../x.json"),
    "escape": lambda info: setattr(info, "name", "\x1b[2J.json"),
}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("strange", STRANGE_TARS)
def test_strange_members_are_a_problem_and_nothing_else(copied, strange, kind, capfd):
    path = copied.local_root / CLIPS
    with tarfile.open(path, "w", format=kind) as archive:
        info = tarfile.TarInfo("key.json")
        STRANGE_TARS[strange](info)
        archive.addfile(info)
    before = sorted(copied.local_root.rglob("*"))
    assert main(["verify", "--data", str(copied.local_root)]) == 1
    assert f"problem: {CLIPS}: tar ends early or is damaged: no header" in capfd.readouterr().err
    assert sorted(copied.local_root.rglob("*")) == before


def test_tars_that_claim_much(copied, capfd):
    """Extended headers of gigabytes, chains of headers, and a member of eight gigabytes; gzip is not opened."""
    giant = tarfile.TarInfo("././@PaxHeader")
    giant.size, giant.type = 8**11 - 1, tarfile.XHDTYPE
    chain = tarfile.TarInfo("././@LongLink")
    chain.size, chain.type = 0, tarfile.GNUTYPE_LONGNAME
    for data in (
        giant.tobuf(tarfile.USTAR_FORMAT) + b"x" * 512,
        chain.tobuf(tarfile.USTAR_FORMAT) * 5000,
        member_header("key", "mp4", 8**11 - 1) + b"x",
        gzip.compress((copied.local_root / CLIPS).read_bytes()),
    ):
        (copied.local_root / CLIPS).write_bytes(data)
        assert main(["verify", "--data", str(copied.local_root)]) == 1
        captured = capfd.readouterr()
        assert f"problem: {CLIPS}: tar ends early" in captured.err and "Traceback" not in captured.err


def test_a_member_twice(copied):
    key, contents = sample_key(0), media_contents(0)
    double = member_bytes(key, "json", contents["json"]) * 2 + END_OF_ARCHIVE
    (copied.local_root / CLIPS).write_bytes(double)
    assert [p.detail for p in verify(copied).problems if p.key == key and "twice" in p.detail] == [
        "a member occurs twice"
    ]


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("ann.json", b"[" * 10**5),
        ("ann.json", b"[1, 2" + b" " * (17 << 20) + b"]"),
        ("mesh.npy", b"PK\x03\x04" + bytes(600)),
        ("mesh.npy", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ("mesh.npy", b""),
        ("other.npy", b"x"),
        ("other.bin", b"x" * 1000),
    ],
)
def test_contents_that_no_reader_of_ours_opens(copied, edit_shard, suffix, data):
    edit_shard(copied, ANN, lambda samples: samples[0][1].update({suffix: data}))
    adopt(copied, ANN)
    found = [p for p in verify(copied).problems if p.kind == "content"]
    assert len(found) == 1 and suffix in found[0].detail and str(found[0]).isprintable()


def test_names_of_unknown_files_are_shown_on_one_line(copied, capfd):
    (copied.local_root / "a\nerror: b\x1b[2J").write_bytes(b"")
    assert main(["verify", "--data", str(copied.local_root)]) == 0
    assert r"unknown file: 'a\nerror: b\x1b[2J'" in capfd.readouterr().err


def test_another_wav_header_and_impossible_lengths(copied):
    for frames in (3_400_000, 2**31 - 1):
        edit_rows(copied, lambda rows, frames=frames: _replace(rows, 3, num_frames=frames))
        assert "content" in {kind for _, kind in kinds(verify(copied))}
        with pytest.raises(ValueError, match="not a plain mono"):
            check_wav_header(bytes(44), frames)
