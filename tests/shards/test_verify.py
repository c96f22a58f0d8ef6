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
from shards.manifest import AnnotationEntry, read_manifest, write_manifest
from shards.pins import pin_run, read_pins
from shards.verify import VerifyReport, verify
from talkinghead import dataroot
from talkinghead.annotation import COLUMN
from talkinghead.column import Column, encode_column
from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from talkinghead.latents import EMBEDDING, LATENTS
from talkinghead.provenance import hash_file
from talkinghead.sampletar import END_OF_ARCHIVE, member_bytes, member_header, walk_members
from tests.support.derived_data import TOY, ToySettings, add_fit, add_version
from tests.support.indexes import edit_rows, open_index
from tests.support.shard_data import LENGTHS, clip_arrays, media_contents, sample_key

CLIPS, ANN = "clips-000001.tar", "ann/v1/ann-000001.tar"


def kinds(report: VerifyReport) -> set[tuple[str, str]]:
    return {(problem.file, problem.kind) for problem in report.problems}


def adopt(storage: Storage, *names: str) -> None:
    """Let `DATASET.json` name the shards as they are now, so that only a check of the contents can find the damage."""
    manifest = read_manifest(storage)

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
            annotations=[dataclasses.replace(e, shards=renew(e.shards)) for e in manifest.annotations],
        ),
    )


@pytest.mark.parametrize("content", [b"PAR1", b"", None])
def test_a_catalog_that_is_damaged_or_gone(copied, content):
    path = dataroot.catalog(read_manifest(copied).datasets[0])
    # A copy for training has none of what ingest keeps; columns may have been derived in it.
    copied.write(dataroot.plan("derive-toy"), b"")
    assert not copied.list("catalog") and verify(copied).ok
    if content is None:
        copied.write(dataroot.record("ingest", "key", "pkey"), b"")
    else:
        copied.write(path, content)
    [problem] = verify(copied).problems
    assert (problem.file, problem.kind) == (path, "unreadable" if content is not None else "missing")
    assert "make ingest DATASET=" in problem.detail and main(["verify", "--data", copied.uri]) == 1


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
        (lambda rows: _replace(rows, 3, scores={"valid_fraction": 1.0}), "content"),
        (lambda rows: _replace(rows, 3, split="test"), "splits"),
        (lambda rows: _replace(rows, 3, keep=not rows[3].keep, reason="blur" if rows[3].keep else None), "counts"),
    ],
    ids=["row missing", "row too many", "offset", "no annotation", "frames", "licence", "faces", "split", "keep"],
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
    assert capfd.readouterr().err.startswith("error: there is no version 'v7'")
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


# --- derived columns --------------------------------------------------------------------------------------------------


def test_a_derived_version_is_clean_also_where_a_sample_could_not_be_made(copied):
    first = add_version(copied, failed=[sample_key(3)])
    fit = add_fit(copied, "basis")
    second = add_version(copied, settings=ToySettings(1), fits={"basis": fit.sha256})
    pin_run(copied, "/run", versions=["v1", first.version])
    report = verify(copied)
    assert report.ok and report.unknown == [], report.problems
    assert report.versions == ["v1", first.version, second.version] and report.shards == 12
    assert report.fits == [f"basis@{fit.sha256[:12]}"]
    alone = verify(copied, version=first.version)
    assert alone.ok and (alone.shards, alone.fits) == (6, [])
    assert verify(copied, version=second.version).fits == report.fits


def _npy(values: np.ndarray, name: str = "toy_rows") -> bytes:
    """Rows as an `.npy` file in the type that they have, whatever the column's."""
    form = next(column for column in TOY.arrays if column.name == name)
    return encode_column(
        Column(name, values.shape[1:], "", values.dtype, rows=form.rows),
        values,  # of any shape and type
    )


def _rows(length: int) -> np.ndarray:
    return np.zeros((length, 3), "<f2")


INFINITE = np.float16("inf")

DERIVED_DAMAGE = {
    "a row short": ("toy_rows.npy", lambda n: _npy(_rows(n - 1))),
    "a row too many": ("toy_rows.npy", lambda n: _npy(_rows(n + 1))),
    "rows of one frame rate": ("toy_steps.npy", lambda n: _npy(np.zeros((n, 2), "<i2"), "toy_steps")),
    "a row for each frame": ("toy_clip.npy", lambda n: _npy(np.zeros((n, 4), "<f4"), "toy_clip")),
    "no row": ("toy_clip.npy", lambda n: _npy(np.zeros((0, 4), "<f4"), "toy_clip")),
    "another width": ("toy_rows.npy", lambda n: _npy(np.zeros((n, 4), "<f2"))),
    "another number of axes": ("toy_rows.npy", lambda n: _npy(np.zeros((n, 3, 1), "<f2"))),
    "no axis of its own": ("toy_count.npy", lambda n: _npy(np.zeros((1, 1), "<i4"), "toy_count")),
    "another type": ("toy_rows.npy", lambda n: _npy(np.zeros((n, 3), "<f4"))),
    "another kind": ("toy_count.npy", lambda n: _npy(np.zeros(1, "<f4"), "toy_count")),
    "unsigned": ("toy_steps.npy", lambda n: _npy(np.zeros((2 * n, 2), "<u2"), "toy_steps")),
    "infinite": ("toy_rows.npy", lambda n: _npy(np.where(np.arange(n)[:, None] == n - 1, INFINITE, _rows(n)))),
    "minus infinite": ("toy_rows.npy", lambda n: _npy(np.where(np.arange(n)[:, None] == 0, -INFINITE, _rows(n)))),
    "infinite in a clip's row": ("toy_clip.npy", lambda n: _npy(np.full((1, 4), -np.inf, "<f4"), "toy_clip")),
    "cut": ("toy_rows.npy", lambda n: _npy(_rows(n))[:-2]),
    "no array": ("toy_rows.npy", lambda n: b"nothing"),
    "objects": ("toy_rows.npy", lambda n: _npy(_rows(n)).replace(b"'<f2'", b"'|O' ")),
    "json cut": ("toy.json", lambda n: b"{"),
    "json of a list": ("toy.json", lambda n: b"[]"),
}


@pytest.mark.parametrize("damage", DERIVED_DAMAGE)
def test_derived_arrays_that_are_not_as_the_version_says(copied, edit_shard, damage):
    """Everything else agrees: hashes, counts, the places of the members in the index."""
    suffix, data = DERIVED_DAMAGE[damage]
    name = _damage_version(copied, edit_shard, lambda contents, length: contents.update({suffix: data(length)}))
    problems = verify(copied).problems
    assert [(problem.file, problem.key, problem.kind) for problem in problems] == [(name, sample_key(0), "content")]
    assert problems[0].detail.startswith((f"{suffix}: is", f"{suffix}: hol", f"{suffix} ", f"{suffix}: it "))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda contents, _: contents.pop("toy.json"), "lacks toy.json"),
        (lambda contents, _: contents.pop("toy_clip.npy"), "lacks toy_clip.npy"),
        (lambda contents, _: contents.update({"other.npy": _npy(_rows(3))}), "has the unknown members other.npy"),
        (lambda contents, _: contents.update({"mouth.json": b"{}"}), "has the unknown members mouth.json"),
    ],
)
def test_members_of_a_derived_version(copied, edit_shard, change, detail):
    name = _damage_version(copied, edit_shard, change)
    problems = [(problem.file, problem.key, problem.detail) for problem in verify(copied).problems]
    assert problems == [(name, sample_key(0), detail)]


def _damage_version(storage: Storage, edit_shard, change: Callable[[dict[str, bytes], int], object]) -> str:
    """Change the members of sample 0 in a derived version whose index and manifest follow; returns the shard."""
    entry = add_version(storage)
    name = entry.shards[1].name

    def edit(samples):
        change(next(contents for key, contents in samples if key == sample_key(0)), LENGTHS[0])

    edit_shard(storage, name, edit)
    _follow(storage, entry)
    return name


def _follow(storage: Storage, entry: AnnotationEntry) -> None:
    """Let the index of a version name the members as they lie now, and `DATASET.json` the shards and the index."""
    assert storage.local_root
    places: dict[str, list] = {}
    for shard in entry.shards:
        with (storage.local_root / shard.name).open("rb") as stream:
            for key, member in walk_members(stream):
                places.setdefault(key, []).append(member)
    index = open_index(storage, entry.version)
    rows = [dataclasses.replace(row, annotation=places.get(row.key, [])) for row in index.rows()]
    path, sha256 = write_index(storage, build_index(entry.version, rows))
    if path != entry.index:
        storage.delete(entry.index)
    renewed = dataclasses.replace(entry, index=path, index_sha256=sha256)
    manifest = read_manifest(storage)
    others = [other for other in manifest.annotations if other.version != entry.version]
    write_manifest(storage, dataclasses.replace(manifest, annotations=[*others, renewed]))
    adopt(storage, *(shard.name for shard in entry.shards))


def test_a_size_that_the_settings_decide_is_the_same_in_all_clips(copied):
    """In the column's code, and so in every check of a single clip, the size is left open."""
    free = dataclasses.replace(TOY, arrays=(Column("toy_free", (None,), "", np.dtype("<f4")),), scores=())

    def make(row, valid):
        width = 5 if row.key == sample_key(3) else 4
        values = np.where(valid[:, None], 1.0, np.nan) * np.ones(width)
        return Derived(arrays={"toy_free": values})

    entry = add_version(copied, free, make)
    [problem] = verify(copied).problems
    assert (problem.kind, problem.key) == ("content", sample_key(3)) and entry.version in problem.file
    assert problem.detail == "toy_free.npy has rows of [5], other clips of the version of [4]"


def test_a_derived_index_that_keeps_what_is_not_there(copied):
    entry = add_version(copied, failed=[sample_key(3)])
    rows = list(open_index(copied, entry.version).rows())
    number = next(number for number, row in enumerate(rows) if row.key == sample_key(3))
    rows[number] = dataclasses.replace(rows[number], keep=True, reason=None)
    path, sha256 = write_index(copied, build_index(entry.version, rows))
    copied.delete(entry.index)
    splits = {split: count + (split == rows[number].split) for split, count in entry.splits.items()}
    renewed = dataclasses.replace(entry, index=path, index_sha256=sha256, kept=entry.kept + 1, splits=splits)
    manifest = read_manifest(copied)
    write_manifest(copied, dataclasses.replace(manifest, annotations=[manifest.annotation(), renewed]))
    [problem] = verify(copied).problems
    assert problem.key == sample_key(3) and "keeps it, but has no annotation of it" in problem.detail


def test_a_version_that_describes_other_arrays_than_it_holds(copied):
    entry = add_version(copied)
    other = Column("toy_rows", (3,), "cm", np.dtype("<f4")).to_json()
    details = entry.details | {"arrays": [other, *entry.details["arrays"][1:]]}
    manifest = read_manifest(copied)
    changed = dataclasses.replace(entry, details=details)
    write_manifest(copied, dataclasses.replace(manifest, annotations=[manifest.annotation(), changed]))
    problems = verify(copied).problems
    assert len(problems) == len(LENGTHS)
    assert all("toy_rows.npy: is float16" in p.detail and "must be float32" in p.detail for p in problems)


def test_old_latents_need_rows_for_all_frames_and_no_more(copied, edit_shard):
    """Releases before derived columns did not describe arrays."""
    latents = dataclasses.replace(
        TOY,
        name=LATENTS,
        arrays=(
            Column(LATENTS, (2, 1, 1), "", np.dtype("<f2")),
            Column(EMBEDDING, (4,), "", np.dtype("<f4"), optional=True),
        ),
        scores=(),
    )

    def make(row, valid):
        values = np.ones((row.num_frames, 2, 1, 1), np.float32)
        values[~valid] = np.nan
        return Derived(arrays={LATENTS: values, EMBEDDING: np.full((row.num_frames, 4), np.nan, np.float32)})

    entry = add_version(copied, latents, make)
    networks = {"vae": {"sha256": "a"}, "image_encoder": {"sha256": "b"}}
    old = dataclasses.replace(entry, details={"width": 8, "height": 8, **networks, "columns": [EMBEDDING, LATENTS]})
    manifest = read_manifest(copied)
    write_manifest(copied, dataclasses.replace(manifest, annotations=[manifest.annotation(), old]))
    assert verify(copied).ok, verify(copied).problems

    def cut(samples):
        samples[0][1]["latents.npy"] = encode_column(latents.arrays[0], np.ones((3, 2, 1, 1)))

    edit_shard(copied, entry.shards[0].name, cut)
    adopt(copied, entry.shards[0].name)
    assert "content" in {problem.kind for problem in verify(copied).problems}


# --- global fits and pins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kinds_"),
    [(None, ["missing"]), (b"SUMS", ["sha256"]), (b"sum", ["size", "sha256"]), (b"sumsums", ["size", "sha256"])],
)
def test_damaged_fits(copied, content, kinds_):
    fit = add_fit(copied, "basis", b"sums")
    assert verify(copied).ok
    if content is None:
        copied.delete(fit.path)
    else:
        copied.write(fit.path, content)
    assert [(problem.file, problem.kind) for problem in verify(copied).problems] == [(fit.path, k) for k in kinds_]


def test_a_fit_in_the_place_of_another_and_files_that_nothing_names(copied):
    one, two = add_fit(copied, "basis", b"sums"), add_fit(copied, "basis", b"more")
    copied.write(two.path, copied.read(one.path))
    assert [(problem.file, problem.kind) for problem in verify(copied).problems] == [(two.path, "sha256")]
    copied.write(two.path, b"more")
    for name in ("fits/basis/" + "0" * 64 + ".npz", "fits/notes.txt", "pins/notes.json", "ann/toy-0/ann-000000.tar"):
        copied.write(name, b"?")
    report = verify(copied)
    assert report.ok
    assert set(report.unknown) == {
        "fits/basis/" + "0" * 64 + ".npz", "fits/notes.txt", "pins/notes.json", "ann/toy-0/ann-000000.tar"
    }  # fmt: skip


def test_a_damaged_pin_is_a_problem(copied):
    pin_run(copied, "/run", versions=["v1"])
    assert verify(copied).ok and verify(copied).unknown == []
    [pin] = read_pins(copied)
    copied.write(pin.path, b"{}")
    report = verify(copied)
    assert [(problem.file, problem.kind) for problem in report.problems] == [(pin.path, "unreadable")]
    assert report.unknown == []
