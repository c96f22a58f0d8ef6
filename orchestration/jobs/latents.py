"""Latents as units: one per packed sample and version. What training would encode in every step, encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestration.units.unit import Output, Unit
from talkinghead.derived import ENCODING, LATENTS, NETWORKS
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, hash_bytes, library_versions, pretty_json, provenance_key
from talkinghead.schema import ClipInfo, Member

if TYPE_CHECKING:
    from talkinghead.models.image.codec import PictureEncoder
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from annotate.latents import LatentSettings, _npy, device, encode_frames
from orchestration import results
from orchestration.job_names import encode_job
from orchestration.jobs import pack
from orchestration.jobs.finish_latents import finish_latents
from orchestration.jobs.pack import pack_units
from orchestration.plans import plan_names, read_plan, write_plan
from orchestration.units.executor import Tally
from orchestration.units.ledger import Ledger
from orchestration.units.records import UnitRecord
from orchestration.units.runner import Runner
from orchestration.units.unit import RunError
from shards.index import Index, read_index
from shards.manifest import DatasetManifest, read_manifest
from shards.plan import PlannedSample
from talkinghead import dataroot
from talkinghead.derived import FIRST_ENCODING
from talkinghead.schema import check_version, media_shard_name

if TYPE_CHECKING:
    from talkinghead.models.image.codec import PictureEncoder
from orchestration.job_names import pack_annotation_job, shard_key

LIBRARIES = ("av", "opencv-contrib-python", "numpy", "torch", "diffusers", "transformers")


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """Where a packed sample's media lie."""

    key: str
    num_frames: int
    file: str
    file_sha256: str
    """Of the whole shard: with the key it names the content."""
    members: tuple[Member, ...]


def version_name(settings: LatentSettings, provenance: Mapping[str, Mapping[str, str]]) -> str:
    """`latents-` and 12 hexadecimal digits: a function of weights and size, not of where the weights lie."""
    hashes = [provenance[name]["sha256"] for name in NETWORKS]
    return f"latents-{hash_bytes(canonical_json([ENCODING, *hashes, settings.width, settings.height]))[:12]}"


def plan_latents(
    clips: Iterable[PackedClip],
    version: str,
    settings: LatentSettings,
    provenance: Mapping[str, Mapping[str, str]],
    time_limit_s: float | None,
) -> list[Unit]:
    """One unit per packed sample, in key order.

    Args:
        clips: The samples.
        version: Name of the version.
        settings: Networks (their folders as every worker finds them) and size.
        provenance: Of the networks.
        time_limit_s: Wall-clock limit of a unit; None: from the size of its frames.
    """
    sha256 = {name: provenance[name]["sha256"] for name in NETWORKS}
    libraries = library_versions(*LIBRARIES)
    # Stable Diffusion's codec and CLIP take some 20 s per 512 x 512 picture on one slow core.
    frame_s = 0.5 + 60.0 * settings.width * settings.height / 512**2
    return [
        Unit(
            job=encode_job(version),
            key=clip.key,
            pkey=provenance_key(
                "latents",
                ENCODING,
                parameters={"width": settings.width, "height": settings.height},
                inputs={"key": clip.key, "shard": clip.file_sha256},
                models=sha256,
                libraries=libraries,
            ),
            function="orchestration.jobs.latents:run",
            payload={
                "file": clip.file,
                "members": [asdict(member) for member in clip.members],
                "settings": asdict(settings),
                "networks": {name: dict(provenance[name]) for name in NETWORKS},
            },
            source=clip.key,
            time_limit_s=time_limit_s or 180.0 + frame_s * clip.num_frames,
        )
        for clip in sorted(clips, key=lambda clip: clip.key)
    ]


def run(storage: Storage, unit: Unit) -> Output:
    """Encode one sample."""
    from av.error import FFmpegError

    from orchestration.jobs.worker_networks import pin_threads, planned_encoder
    from talkinghead.media.clip import decode_clip
    from talkinghead.media.errors import UnreadableMediaError

    pin_threads()
    settings = LatentSettings(**unit.payload["settings"])
    networks = unit.payload["networks"]
    sha256 = {name: about["sha256"] for name, about in networks.items()}
    encoder = planned_encoder(settings.vae, settings.image_encoder, sha256, device(settings))
    members = {member["suffix"]: member for member in unit.payload["members"]}
    media = {
        suffix: storage.read_range(unit.payload["file"], members[suffix]["offset"], members[suffix]["size"])
        for suffix in ("json", "mp4")
    }
    info = ClipInfo.from_json(media["json"])
    if info.key != unit.key:
        raise ValueError(f"{storage.describe(unit.payload['file'])} holds {info.key} where {unit.key} should be")
    try:
        columns = encode_frames(encoder, decode_clip(media["mp4"]), settings.width, settings.height)
    except FFmpegError as error:
        raise UnreadableMediaError("undecodable", f"{unit.key}.mp4 is damaged: {error.strerror or error}") from error
    if len(columns[LATENTS]) != info.num_frames:
        raise ValueError(f"{unit.key}.mp4 has {len(columns[LATENTS])} frames, its json says {info.num_frames}")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} of {unit.key} are not finite in half precision: these weights do not fit")
    about = {
        "encode_key": unit.pkey,
        "width": settings.width,
        "height": settings.height,
        **networks,
        "scaling_factor": encoder.vae.config["scaling_factor"],
        "libraries": library_versions(*LIBRARIES),
    }
    contents = {f"{name}.npy": _npy(values) for name, values in columns.items()} | {"latents.json": pretty_json(about)}
    return Output(contents=[(unit.key, info.num_frames, dict(sorted(contents.items())))], details=about)


log = logging.getLogger(__name__)


Provenance = Mapping[str, Mapping[str, str]]


_HALF = 2
"""Bytes of a number."""


def run_latents(runner: Runner, settings: LatentSettings, version: str | None = None) -> str:
    """Encode every packed sample that is not encoded yet, pack the version's shards, and enter it in `DATASET.json`.

    Args:
        runner: DATA, with a finished data set.
        settings: Networks and size.
        version: Name of the version; None: `latents.version_name`.

    Returns:
        Name of the version.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: Networks that cannot be read, a size that does not fit them, or a name that something else has.
        RunError: The machine is at fault.
    """
    from talkinghead.models.image.codec import PictureEncoder, check_picture_size

    storage = runner.storage
    manifest = read_manifest(storage)
    settings = _findable(settings)
    encoder = PictureEncoder.load(settings.vae, settings.image_encoder)
    check_picture_size(settings.width, settings.height, encoder.vae)
    networks = encoder.provenance()
    version = check_version(version or version_name(settings, networks))
    about = {"encoding": ENCODING, "width": settings.width, "height": settings.height, **networks}
    before = _check_name(storage, manifest, version, about)
    index = read_index(storage, manifest.annotation())
    done = results.pack_records(storage, pack_annotation_job(version))
    packed = {sample.key for record in done.values() for sample in record.samples}
    units = plan_latents(_clips(manifest, index), version, settings, networks, runner.retry.time_limit_s)
    # Packed ones stay as they are, also under newer libraries.
    units = [replace(unit, pkey=before.get(unit.key, unit.pkey)) if unit.key in packed else unit for unit in units]
    frame_bytes = bytes_per_frame(encoder, settings)
    _check_space(storage, version, units, index, frame_bytes)
    write_plan(storage, encode_job(version), units, **about)
    del encoder
    tally = runner.run(encode_job(version), units, gpu_share=settings.gpu_share)
    encoded = results.encode_results(storage, version)
    _pack(runner, version, manifest, index, encoded)
    finish_latents(storage, version, index, encoded, about)
    _remove_unit_files(storage, version)
    _tell(tally, version, frame_bytes)
    return version


def bytes_per_frame(encoder: PictureEncoder, settings: LatentSettings) -> int:
    """What one frame's latents and embedding take."""
    positions = (settings.width // encoder.scale) * (settings.height // encoder.scale)
    return _HALF * (2 * encoder.channels * positions + encoder.embedding_size)


def _findable(settings: LatentSettings) -> LatentSettings:
    """Folders by their absolute path: a worker elsewhere has another working folder."""
    from talkinghead.models.image.weights import IMAGE_ENCODERS, VAES

    def absolute(source: str, names: tuple[str, ...]) -> str:
        return source if source in names or not Path(source).is_dir() else str(Path(source).resolve())

    return replace(
        settings,
        vae=absolute(settings.vae, VAES),
        image_encoder=absolute(settings.image_encoder, IMAGE_ENCODERS),
    )


def _check_name(storage: Storage, manifest: DatasetManifest, version: str, about: Mapping[str, Any]) -> dict[str, str]:
    """Refuse a name that stands for something else; the units that were planned under it before."""
    if any(entry.version == version for entry in manifest.of_kind("annotation")):
        raise ValueError(f"{version} is a face annotation: choose another --version for the latents")
    name = encode_job(version)
    if name not in plan_names(storage, name):
        return {}
    before = read_plan(storage, name)
    same = all(before[network]["sha256"] == about[network]["sha256"] for network in NETWORKS)
    settings = ("encoding", "width", "height")
    if not same or any({"encoding": FIRST_ENCODING, **before}[name] != about[name] for name in settings):
        raise ValueError(
            f"{version} was begun by another release, with other networks or another size"
            f" ({before['width']}x{before['height']}): choose another --version, or none"
        )
    return before["units"]


def _clips(manifest: DatasetManifest, index: Index) -> list[PackedClip]:
    """Every packed sample, kept by the filters or not: filters may change, shards do not."""
    return [
        PackedClip(
            key=row.key,
            num_frames=row.num_frames,
            file=media_shard_name(row.shard),
            file_sha256=manifest.media[row.shard].sha256,
            members=tuple(row.media),
        )
        for row in index.rows()
    ]


def _check_space(storage: Storage, version: str, units: Sequence[Unit], index: Index, frame_bytes: int) -> None:
    """Say before hours of work that their results will not fit."""
    ledger = Ledger(storage, encode_job(version))
    pending = {unit.key for unit in units if not ledger.is_done(unit)}
    keys, lengths = index.texts("key"), index.numbers("num_frames")
    frames = sum(int(length) for key, length in zip(keys, lengths, strict=True) if key in pending)
    if not frames:
        return
    # Each result stands in its unit's file until it is packed.
    wanted = 2 * frames * frame_bytes
    log.info("%s: %d frames to encode, %.2f GB", version, frames, frames * frame_bytes / 1e9)
    if storage.local_root is not None and (free := shutil.disk_usage(storage.local_root).free) < wanted:
        raise RunError(
            f"latents of {frames} frames at {frame_bytes / 1024:.1f} KiB each need {wanted / 1e9:.3g} GB while they are"
            f" packed (half of it then stays); {storage.uri} has {free / 1e9:.3g} GB left: make room, or choose smaller"
            " pictures"
        )


def _pack(runner: Runner, version: str, manifest: DatasetManifest, index: Index, encoded: results.Results) -> None:
    """Pack the shards that are missing; what could not be encoded is missing in them."""
    job = pack_annotation_job(version)
    done = {key for key, _ in Ledger(runner.storage, job).committed}
    units = []
    for number in range(len(manifest.media)):
        if shard_key(number) in done:
            continue
        samples, contents, failed = [], [], []
        for key in index.texts("key")[index.shard_rows(number)]:
            record = encoded[key]
            if not isinstance(record, UnitRecord):
                failed.append(key)
                continue
            assert record.file and record.file_sha256
            sample = record.samples[0]
            samples.append(
                PlannedSample.of_members(
                    key=key,
                    file=record.file,
                    members=sample.members,
                    num_frames=sample.num_frames,
                    sha256=sample.sha256,
                )
            )
            contents.append(record.file_sha256)
        limit = runner.retry.time_limit_s
        units.append(pack.plan_pack(version, number, samples, contents, limit, failed))
    pack_units(runner, job, units)


def _remove_unit_files(storage: Storage, version: str) -> None:
    """Latents are large, and a packed shard never changes: the units' own files are not needed any more."""
    for file in storage.list(dataroot.units(encode_job(version)), ".tar"):
        storage.delete(file.path)


def _tell(tally: Tally, version: str, frame_bytes: int) -> None:
    if tally.committed:
        speed = tally.frames / max(tally.wall_seconds, 1e-9)
        log.info("%s: %d frames, %.1f frames/s, %d bytes per frame", version, tally.frames, speed, frame_bytes)
