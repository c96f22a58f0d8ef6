"""Derived columns as versions: exactly once, whatever dies; readers, verify and the report take them as they are."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from annotate import latents
from annotate.latents import LATENTS
from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs import derive, derive_worker
from orchestration.outcomes import current_quarantine
from orchestration.plans import column_job
from orchestration.units.damage import damaged_files
from orchestration.units.executor import RetrySettings, run_units
from orchestration.units.ledger import release
from orchestration.units.unit import JobStoppedError, Unit
from shards.manifest import find_latents, read_manifest
from shards.reader import ShardReader
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.derived import version_of as version_of_column
from talkinghead.files.storage import Storage
from talkinghead.latents import ROWS, latent_columns, unpack_rows
from talkinghead.media.image_size import fit_images
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.image.weights import load_vae
from tests.support.dying import die_at_writes
from tests.support.job_commands import Command
from tests.support.latent_data import (
    LENGTHS,
    SETTINGS,
    build,
    clip_key,
    in_process,
    make_latents,
    make_version_1,
    unit_by_unit,
)
from tests.support.mending import CountingRunner
from tests.support.object_store import LocalS3
from tests.support.old_layout import age_data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without latents; not to be changed."""
    folder = tmp_path_factory.mktemp("latents") / "data"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with latents; not to be changed."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("latents") / "encoded"))
    make_latents(in_process(folder), SETTINGS)
    return folder


@pytest.fixture
def data(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


def version_of(data: Path) -> str:
    [entry] = read_manifest(Storage(data)).of_kind("latents")
    return entry.version


def forget_opened() -> None:
    """Make this process load its networks again, as another one would."""
    derive_worker._last.clear()
    latents._looked_at.clear()


def content(data: Path) -> dict[str, bytes]:
    """Hashes of everything that readers see: all files but records and wall times."""
    files = [data / "DATASET.json", *data.glob("clips-*.tar"), *data.rglob("ann-*.tar"), *data.glob("index/*")]
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in files}


def test_the_columns_are_what_training_would_encode(encoded: Path) -> None:
    version = version_of(encoded)
    encoder = ImageNetworks.load(SETTINGS.vae, SETTINGS.image_encoder)
    columns = latent_columns(read_manifest(Storage(encoded)).annotation(version).arrays)
    reader = ShardReader(encoded, split=None, kept=False, join=(version,), columns=columns)
    assert reader.version == "v1" and len(reader) == len(LENGTHS)
    for position in range(len(reader)):
        sample = reader[position]
        images = fit_images(sample.video().transpose(0, 3, 1, 2), 32, 32)
        moments = encoder.moments(torch.from_numpy(images)).numpy()
        tokens = encoder.embedding(torch.from_numpy(images)).numpy()
        rows = unpack_rows(sample.annotation(ROWS))
        assert rows.clip_size == (sample.info.width, sample.info.height)
        stored = rows.moments(), rows.embedding
        assert stored[0].shape == (sample.num_frames, 32, 8, 8) and stored[0].dtype == np.float16
        np.testing.assert_array_equal(stored[0], moments)  # the variance of CosineVae is one that the code holds
        np.testing.assert_allclose(stored[1].astype(np.float32), tokens.astype(np.float32), rtol=2e-3, atol=2e-3)
        assert np.array_equal(unpack_rows(sample.annotation(ROWS, 2, 3)).mean, stored[0][2:5, :16])
        about = json.loads(sample.member("latents.json"))
        assert (about["width"], about["height"]) == (32, 32) and about["vae"]["name"] == "tiny"
        assert sample.member("ann.json") != sample.member("latents.json")


def test_readers_that_do_not_ask_see_no_difference(built: Path, encoded: Path) -> None:
    plain, other = (ShardReader(folder, split=None) for folder in (built, encoded))
    assert plain.version == other.version == "v1" and plain.keys == other.keys
    assert other.manifest.annotation().version == "v1"
    before, after = (content(folder) for folder in (built, encoded))
    assert {name: after[name] for name in before if name != "DATASET.json"} == {
        name: data for name, data in before.items() if name != "DATASET.json"
    }
    with pytest.raises(ValueError, match="it is in the derived column latents, to be named"):
        ShardReader(encoded, columns=("latent_rows",))
    with pytest.raises(ValueError, match="run make derive COLUMNS=latents"):
        ShardReader(built, join=("latents-0123456789ab",))


def test_verify_and_the_index(encoded: Path) -> None:
    report = verify(Storage(encoded), deep=True)
    assert report.ok and report.versions == ["v1", version_of(encoded)] and not report.unknown, report
    assert not [path for path in encoded.glob("units/encode-*/**/*") if path.is_file()], "large, and packed"
    shard = next(encoded.glob("ann/latents-*/ann-000001.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[3000] ^= 1
    copy = encoded.parent / "damaged"
    shutil.copytree(encoded, copy)
    (copy / shard.relative_to(encoded)).write_bytes(damaged)
    problems = verify(Storage(copy)).problems
    assert {problem.kind for problem in problems} >= {"sha256"} and "latents-" in problems[0].file
    alone = ShardReader(encoded, version=version_of(encoded), split=None)
    assert len(alone) == len(LENGTHS), "also what the filters leave out: thresholds may change, shards do not"


def test_find_latents_goes_by_weights_and_size(encoded: Path, tmp_path: Path) -> None:
    manifest = read_manifest(Storage(encoded))
    networks = ImageNetworks.load("tiny", "tiny").provenance()
    assert find_latents(manifest, networks, 32, 32) == version_of(encoded)
    assert find_latents(manifest, networks, 32, 64) is None
    assert find_latents(manifest, ImageNetworks.load("tiny-kl", "tiny").provenance(), 32, 32) is None
    assert find_latents(manifest, ImageNetworks.load("tiny", "small").provenance(), 32, 32) is None
    # The same weights out of a folder are the same weights.
    load_vae("tiny").save_pretrained(tmp_path / "vae")
    other = ImageNetworks.load(str(tmp_path), "tiny").provenance()
    assert other["vae"]["kind"] == "folder" and find_latents(manifest, other, 32, 32) == version_of(encoded)
    settings, ours = (LATENTS.settled(given) for given in (replace(SETTINGS, vae=str(tmp_path)), SETTINGS))
    made_of = [version_of_column(LATENTS, *pair, {}, {}) for pair in ((settings, other), (ours, networks))]
    assert {found.name for found in made_of} == {version_of(encoded)} and made_of[0].is_same(made_of[1])


def test_a_second_command_does_nothing_and_another_place_gives_the_same_bytes(encoded: Path, data: Path) -> None:
    make_latents(in_process(data), SETTINGS)
    assert content(data) == content(encoded)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    make_latents(in_process(data), SETTINGS)
    after = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != times.get(path)}
    assert after.keys() == times.keys() and changed <= {"DATASET.json", next(data.glob("index/latents-*")).name}
    assert content(data) == content(encoded)


SETUP = """
import orchestration.jobs.derive, talkinghead.media.clip
from tests.support.latent_data import SETTINGS, in_process, make_latents, make_version_1
"""


def test_death_at_any_write(built: Path, encoded: Path, tmp_path: Path) -> None:
    """The process is killed at its n-th write: the plan, two segments, two shards, the index, DATASET.json."""
    copies = [Path(shutil.copytree(built, tmp_path / str(writes))) for writes in range(1, 8)]
    ends = die_at_writes(copies, setup=SETUP, work="make_latents(in_process(folder), SETTINGS)")
    assert ends == [-signal.SIGKILL] * len(copies)
    for data in copies:
        assert read_manifest(Storage(data)).of_kind("latents") == []
        assert len(ShardReader(data)) == 3 and verify(Storage(data)).ok
        done_before = {path: path.stat().st_mtime_ns for path in data.glob("records/encode-*/**/*.parquet")}
        make_latents(in_process(data), SETTINGS)
        assert content(data) == content(encoded) and verify(Storage(data)).ok
        assert all(path.stat().st_mtime_ns == then for path, then in done_before.items()), "encoded once"


@pytest.mark.slow
def test_a_poison_clip_alone_is_missing(tmp_path: Path, command: Command) -> None:
    """With the real command line: the neighbours of a clip that cannot be decoded are encoded."""
    data = tmp_path / "data"
    storage = build(data, poison=(1,))
    arguments = ("orchestration", "latents", "--data", data, "--vae", "tiny", "--image-encoder", "tiny")
    size = ("--width", 32, "--height", 32, "--workers", 1)
    done = command(*arguments, *size)
    assert done.stdout.splitlines()[-1] == str(data / "DATASET.json")
    assert "frames/s" in done.stderr and "4 done now, 1 quarantined" in done.stderr
    [failure] = current_quarantine(storage)
    assert failure.key == clip_key(1) and failure.cause == "media:not_media"
    version = version_of(data)
    entry = read_manifest(storage).annotation(version)
    assert (entry.samples, entry.kept, entry.splits) == (5, 4, {"train": 3, "val": 1})
    reader = ShardReader(data, split=None, kept=False, join=(version,), columns=("latent_rows",))
    assert len(reader) == 4 and clip_key(1) not in reader.keys
    whole = ShardReader(data, split=None, kept=False, join=(version,))
    with pytest.raises(ValueError, match=r"no latent_rows\.npy: .*\(make quarantine\)"):
        whole.find(clip_key(1)).annotation("latent_rows")
    problems = [problem for problem in verify(storage).problems if "mp4" not in problem.detail]
    assert problems == []
    assert make_latents(in_process(data), SETTINGS) == version
    assert release(storage, current_quarantine(storage)) and current_quarantine(storage) == []


def test_a_late_success_changes_no_packed_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = build(tmp_path / "data", poison=(1,))
    version = make_latents(in_process(storage), SETTINGS)
    before = content(tmp_path / "data")
    release(storage, current_quarantine(storage))
    whole = build(tmp_path / "whole")
    # The clip is mended in its shard: as if a codec had been missing when it failed.
    for name in ("clips-000000.tar", "clips-000001.tar"):
        storage.write(name, whole.read(name))
    manifest = read_manifest(whole)
    patched = replace(read_manifest(storage), media=manifest.media)
    storage.write("DATASET.json", patched.to_json())
    shutil.copytree(tmp_path / "whole/index", tmp_path / "data/index", dirs_exist_ok=True)
    entries = [*manifest.annotations, *patched.of_kind("latents")]
    storage.write("DATASET.json", replace(patched, annotations=entries).to_json())
    assert make_latents(in_process(storage), SETTINGS) == version
    assert "only after their shard" in caplog.text
    after = content(tmp_path / "data")
    shards = [name for name in before if name.startswith("ann/latents-")]
    assert shards and all(after[name] == before[name] for name in shards)
    # Its file went with those of the packed ones; it is not missed.
    assert not list((tmp_path / "data/units").glob("encode-*/*/*.tar"))
    runner = CountingRunner(storage=storage, cluster=in_process(storage).cluster, retry=in_process(storage).retry)
    for _ in range(2):
        assert make_latents(runner, SETTINGS) == version
        assert set(runner.done.values()) == {(0, 0)} and damaged_files(storage) == []
    assert make_latents(in_process(storage), SETTINGS, "again") == "again"
    assert read_manifest(storage).annotation("again").kept == len(LENGTHS)
    # The newest comes last, and is what readers take that name none.
    assert [entry.version for entry in read_manifest(storage).annotations] == ["v1", version, "again"]
    assert read_manifest(storage).derived("latents").version == "again"


def test_a_clip_that_breaks_in_the_middle_is_not_readable_media(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not tried again, and listed by the cause that all unreadable media have; the version says what it lacks."""
    storage = Storage(data)
    sample = ShardReader(storage, split=None, kept=False).find(clip_key(3))
    file, member = sample._reader.locate(sample.row, "mp4")
    read_range = Storage.read_range

    def damaged(self: Storage, path: str, offset: int, size: int) -> bytes:
        content = read_range(self, path, offset, size)
        if path != file or not offset <= member.offset < offset + size:
            return content
        start = content.index(b"mdat") + 4  # the images; the table of contents stays whole
        stop = start - 8 + int.from_bytes(content[start - 8 : start - 4], "big")
        return content[:start] + b"\xff" * (stop - start) + content[stop:]

    monkeypatch.setattr(Storage, "read_range", damaged)
    make_latents(in_process(storage), SETTINGS)
    [failure] = current_quarantine(storage)
    assert (failure.key, failure.cause) == (clip_key(3), "media:undecodable")
    assert "lacks 1 of 5 samples that could not be made" in caplog.text


def test_names_and_sizes_that_cannot_be(data: Path) -> None:
    runner = in_process(data)
    for settings, version, said in (
        (replace(SETTINGS, width=42), None, "multiples of 4"),
        (replace(SETTINGS, vae="nowhere"), None, "no folder 'nowhere'"),
        (replace(SETTINGS, image_encoder=str(data)), None, "no image_encoder in"),
        (SETTINGS, "v1", "v1 is in use for annotation"),
        (SETTINGS, "a b", "must be 1 to 31 characters"),
    ):
        with pytest.raises(ValueError, match=said):
            make_latents(runner, settings, version)
    assert not list(data.glob("plans/encode-*")) and read_manifest(Storage(data)).of_kind("latents") == []
    make_latents(runner, SETTINGS, "mine")
    with pytest.raises(
        ValueError, match=r"mine was begun by another release, .* or settings \(\{'device': 'cpu', 'height': 32, "
    ):
        make_latents(runner, replace(SETTINGS, width=64), "mine")
    with pytest.raises(FileNotFoundError, match="make shards"):
        make_latents(in_process(data / "empty"), SETTINGS)


def test_no_space_is_said_before_anything_is_encoded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(JobStoppedError, match=r"encode-latents-.*: 57 frames at 3\.1 KiB each need .* make room"):
        make_latents(in_process(data), SETTINGS)
    assert not list(data.rglob("records/encode-*/**/*.json"))


def test_weights_that_change_under_the_plan_stop_the_job(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of a cluster may have another file in the same place."""
    load_vae("tiny-kl").save_pretrained(tmp_path / "vae")
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    given = derive.plan_derive

    def plan_and_swap(*arguments: object) -> object:
        units = given(*arguments)  # type: ignore[arg-type]
        vae = load_vae("tiny-kl")
        torch.nn.init.ones_(next(vae.parameters()))
        vae.save_pretrained(tmp_path / "vae")
        forget_opened()
        return units

    monkeypatch.setattr(derive, "plan_derive", plan_and_swap)
    with pytest.raises(JobStoppedError, match="this machine has the vae"):
        make_latents(in_process(data), settings)
    shutil.rmtree(tmp_path / "vae")
    forget_opened()
    with pytest.raises(ValueError, match="no folder"):
        make_latents(in_process(data), settings)


def test_networks_are_loaded_once_for_all_units(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_opened()
    loads = []
    load = ImageNetworks.load
    monkeypatch.setattr(ImageNetworks, "load", lambda *names: loads.append(names) or load(*names))
    make_latents(in_process(data), SETTINGS)
    assert len(loads) == 2, "by the plan, and by the one worker"


def test_values_beyond_half_precision_are_refused(data: Path, tmp_path: Path) -> None:
    vae = load_vae("tiny-kl")
    with torch.no_grad():
        vae.quant_conv.bias.fill_(1e6)  # pyright: ignore
    vae.save_pretrained(tmp_path / "vae")
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    with pytest.raises(ValueError, match=r"no sample .* could be made, so there is no latents-"):
        make_latents(in_process(data), settings)
    assert read_manifest(Storage(data)).of_kind("latents") == []
    failures = current_quarantine(Storage(data))
    assert len(failures) == len(LENGTHS) and failures[0].cause in ("column:nan", "column:range")


@pytest.mark.slow
def test_units_share_the_gpus_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray believes in two GPUs that do not exist: each unit sees one, and only units with a share work at once."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 2}')
    storage = Storage(tmp_path / "data")
    units = [
        Unit(
            job="test",
            key=f"unit{number}",
            pkey="0123456789abcdef",
            function="tests.support.poison:behave",
            payload={"behaviour": "gpus", "runs": str(tmp_path / "runs"), "sleep": 0.2},
            source="",
            time_limit_s=60.0,
        )
        for number in range(6)
    ]
    with Cluster(ClusterSettings(workers=4)) as cluster:
        assert cluster.gpu_slots(0.5) == (4, 0.5) and cluster.gpu_slots(1.0) == (2, 1.0)
        assert cluster.gpu_slots(0.0) == (4, 0.0)
        assert run_units(storage, "test", units, cluster, RetrySettings(), gpu_share=0.5).committed == 6
    seen = {storage.read(file.path)[512:514].strip(b"\0") for file in storage.list("units", ".tar")}
    assert seen <= {b"0", b"1"} and seen


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_latents_live_through_what_happens_to_a_data_set(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    """Other thresholds, another annotation version, new clips: never a data set that contradicts itself."""
    data = Path(shutil.copytree(finished, tmp_path / "data"))
    encode = ("orchestration", "latents", "--data", data, "--vae", "tiny", "--image-encoder", "tiny")
    encode = (*encode, "--width", 64, "--height", 64, "--workers", 2)

    def sound() -> dict[str, object]:
        command("shards", "verify", "--data", data)
        command("orchestration", "report", "--data", data)
        numbers = json.loads((data / "report/report.json").read_text())
        assert numbers["errors"] == [] and numbers["pending"] == 0
        return numbers

    command(*encode)
    version = version_of(data)
    [about] = sound()["columns"]  # pyright: ignore
    assert about["version"] == version and about["missing"] == 0 and about["bytes_per_frame"] > 3 * 16 * 16 * 16
    assert f"encode-{version}" in sound()["jobs"] and version in (data / "report/index.html").read_text()  # type: ignore
    command("orchestration", "shards", "--data", data, "--filters", "max_yaw_abs_median=30")
    manifest = read_manifest(Storage(data))
    assert [entry.version for entry in manifest.annotations] == [
        "v1",
        version,
    ] and manifest.annotation().version == "v1"
    command("orchestration", "reannotate", "--data", data, "--version", "v2", "--annotate", "detector_every=2")
    manifest = read_manifest(Storage(data))
    assert [entry.version for entry in manifest.annotations] == ["v1", "v2", version]
    assert manifest.annotation().version == "v2" and sound()["previous_version"] == "v1"
    assert len(ShardReader(data, split=None, join=(version,), columns=("latent_rows", "mesh"))) > 0
    refused = command("orchestration", "report", "--data", data, "--version", version, check=False)
    assert refused.returncode == 2 and "holds latents" in refused.stderr
    refused = command("orchestration", "reannotate", "--data", data, "--version", version, check=False)
    assert refused.returncode == 2 and "holds the column latents" in refused.stderr

    source = Path(shutil.copytree(sample_source, tmp_path / "source"))
    (source / "another.mp4").write_bytes(sorted(source.glob("astronaut*"))[0].read_bytes() + 2 * b"\0\0\0\x08free")
    done = command("orchestration", "shards", "--source", source, "--data", data)
    assert f"latents {version} does not cover the new shards: make derive COLUMNS=latents ARGS=" in done.stderr
    assert read_manifest(Storage(data)).of_kind("latents") == []
    sound()
    before = {path: path.read_bytes() for path in data.glob("ann/latents-*/*.tar")}
    done = command(*encode)
    assert "1 done now" in done.stderr and version_of(data) == version
    assert all(path.read_bytes() == then for path, then in before.items())
    assert len(list(data.glob("ann/latents-*/*.tar"))) == len(before) + 1
    sound()
    command("orchestration", "retry", "--data", data)


def test_an_object_store_gets_the_same_shards(encoded: Path, built: Path, s3: LocalS3) -> None:
    storage, local = Storage(s3.uri("latents")), Storage(built)
    for path in sorted(path for path in built.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = path.relative_to(built).as_posix()
        storage.write(name, local.read(name))
    version = make_latents(in_process(storage), SETTINGS)
    expected = content(encoded)
    assert {name: storage.read(name) for name in expected} == expected
    assert not storage.list("units/" + column_job("latents", version)) and verify(storage).ok
    assert find_latents(read_manifest(storage), ImageNetworks.load("tiny", "tiny").provenance(), 32, 32) == version


def test_a_data_set_of_an_older_release_goes_on(built: Path, tmp_path: Path) -> None:
    """Plans as JSON, records without labels, latents described as before: nothing is made anew, nothing changes."""
    made = Path(shutil.copytree(built, tmp_path / "made"))
    make_version_1(unit_by_unit(made))
    data = Path(shutil.copytree(made, tmp_path / "data"))
    age_data(data)
    assert not list(data.glob("plans/*.parquet")) and list(data.glob("plans/encode-*.json"))
    manifest = read_manifest(Storage(data))
    version = version_of(data)
    assert manifest.annotation(version).made_of.is_same(read_manifest(Storage(made)).annotation(version).made_of)
    assert f"--version {version}" in manifest.annotation(version).command
    assert find_latents(manifest, ImageNetworks.load("tiny", "tiny").provenance(), 32, 32) == version
    columns = latent_columns(manifest.annotation(version).arrays)
    assert columns == ("latents", "embedding")
    old, new = (ShardReader(folder, split=None, join=("latents",), columns=columns) for folder in (data, made))
    for name in columns:
        np.testing.assert_array_equal(old[0].annotation(name, 1, 2), new[0].annotation(name, 1, 2))
    assert verify(Storage(data), deep=True).ok

    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    assert make_latents(in_process(data), version=version) == version
    after = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != times.get(path)}
    plan = Path(dataroot.plan(column_job("latents", version))).name
    assert changed <= {"DATASET.json", plan, next(data.glob("index/latents-*")).name}, "no record, no shard"
    assert content(data) == content(made)

    # Without its name the present version is made, next to it, and is what trainings find.
    newer = make_latents(in_process(data))
    assert newer != version and verify(Storage(data), deep=True).ok
    manifest = read_manifest(Storage(data))
    assert find_latents(manifest, ImageNetworks.load("tiny", "tiny").provenance(), 32, 32) == newer
    old, new = (ShardReader(data, split=None, join=(name,)) for name in (version, newer))
    for row in range(len(old)):
        moments = unpack_rows(new[row].annotation(ROWS)).moments()
        np.testing.assert_array_equal(moments, old[row].annotation("latents"))


def test_an_older_version_that_was_half_made_goes_on_with_its_bytes(built: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(built, tmp_path / "whole"))
    version = make_version_1(in_process(whole))
    work = "make_version_1(in_process(folder))"
    copies = [Path(shutil.copytree(built, tmp_path / str(writes))) for writes in range(1, 6)]
    die_at_writes(copies, setup=SETUP, work=work)
    half = copies[2]
    assert list(half.glob(f"records/encode-{version}/**/*.parquet"))
    assert make_latents(in_process(half), version=version) == version
    assert content(half) == content(whole)
