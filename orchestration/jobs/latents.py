"""The latents job: every packed sample encoded by a VAE and an image encoder, as a version next to the annotations.

`run_latents` plans a unit per packed sample, encodes those that are not done, packs them parallel to the media shards
and enters the version in `DATASET.json`; `run` is what a worker does with one unit. All latents of a version come from
the same networks at the same size; its name is a hash of these unless the user gives another.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from annotate.latents import LatentSettings, bytes_per_frame, encode_frames, encode_latents
from orchestration import plans
from orchestration.jobs.finish import finish_latents
from orchestration.jobs.media import MediaSample, read_clip
from orchestration.jobs.pack import pack_columns
from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.ledger import Ledger
from orchestration.units.unit import JobStoppedError, Output, Unit
from shards.index import Index, read_index
from shards.manifest import DatasetManifest, read_manifest
from talkinghead import dataroot
from talkinghead.derived import ENCODING, FIRST_ENCODING, NETWORKS
from talkinghead.files.storage import Storage
from talkinghead.latents import LATENTS
from talkinghead.models.image.networks import ImageNetworks, check_image_size
from talkinghead.models.image.weights import IMAGE_ENCODERS, VAES
from talkinghead.provenance import canonical_json, hash_bytes, library_versions, provenance_key
from talkinghead.schema import check_version, media_shard_name

log = logging.getLogger(__name__)

# In the provenance keys: they decode the videos, resize the frames and compute the networks.
LIBRARIES = ("av", "opencv-contrib-python", "numpy", "torch", "diffusers", "transformers")

Provenance = Mapping[str, Mapping[str, str]]
"""Network → `name`, `sha256`, …, as `ImageNetworks.provenance` gives it."""

# --- the whole job ----------------------------------------------------------------------------------------------------


def run_latents(runner: UnitRunner, settings: LatentSettings, version: str | None = None) -> str:
    """Encode every packed sample that is not encoded yet, pack the version's shards, and enter it in `DATASET.json`.

    Args:
        runner: Runs the units, on its DATA, which holds a finished data set.
        settings: Networks that encode, and the size of the images.
        version: Name of the version; None: that of `version_name`.

    Returns:
        Name of the version.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: The networks cannot be read, the size does not fit them, or the name is in use for something else.
        JobStoppedError: The machine is at fault.
    """
    storage = runner.storage
    manifest = read_manifest(storage)

    # Which networks these are, and under which name their latents go.
    settings = _findable(settings)
    encoder = ImageNetworks.load(settings.vae, settings.image_encoder)
    check_image_size(settings.width, settings.height, encoder.vae)
    networks, frame_bytes = encoder.provenance(), bytes_per_frame(encoder, settings)
    version = check_version(version or version_name(settings, networks))
    about = {"encoding": ENCODING, "width": settings.width, "height": settings.height, **networks}
    before = _check_name(storage, manifest, version, about)
    del encoder  # the workers load their own

    # The plan: a unit per packed sample, packed latents as they were made. It is written before anything runs.
    index = read_index(storage, manifest.annotation())
    done = plans.pack_records(storage, plans.pack_annotation_job(version))
    packed = {sample.key for record in done.values() for sample in record.samples}
    units = plan_latents(_samples(manifest, index), version, settings, networks, runner.retry.time_limit_s)
    units = plans.keep_packed(units, before, packed)
    _check_space(storage, version, units, index, frame_bytes)
    plans.write_plan(storage, plans.encode_job(version), units, **about)

    # Encode, on GPUs where the cluster has any.
    tally = runner.run(plans.encode_job(version), units, gpu_share=settings.gpu_share)

    # Pack parallel to the media shards (what could not be encoded is missing there), and let readers see the version.
    encoded = plans.encode_results(storage, version)
    keys = index.texts("key")
    shards = [keys[index.shard_rows(number)].tolist() for number in range(len(manifest.media))]
    pack_columns(runner, version, shards, encoded)
    finish_latents(storage, version, index, encoded, about)
    _remove_unit_files(storage, version)
    _tell(tally, version, frame_bytes)
    return version


def version_name(settings: LatentSettings, provenance: Provenance) -> str:
    """Default name of a version: `latents-` and 12 hexadecimal digits, a hash of the weights and the size.

    Args:
        settings: Networks and size.
        provenance: SHA-256 of each network's weights, so that their place does not matter.
    """
    hashes = [provenance[name]["sha256"] for name in NETWORKS]
    return f"latents-{hash_bytes(canonical_json([ENCODING, *hashes, settings.width, settings.height]))[:12]}"


def _findable(settings: LatentSettings) -> LatentSettings:
    """Settings with absolute paths of the networks' folders: a worker elsewhere has another working folder."""

    def absolute(source: str, names: tuple[str, ...]) -> str:
        # A folder may be called like a network that is built in; the name wins, as it does in loading.
        return source if source in names or not Path(source).is_dir() else str(Path(source).resolve())

    return replace(
        settings,
        vae=absolute(settings.vae, VAES),
        image_encoder=absolute(settings.image_encoder, IMAGE_ENCODERS),
    )


def _check_name(storage: Storage, manifest: DatasetManifest, version: str, about: Mapping[str, Any]) -> dict[str, str]:
    """Check that the name is free, or that of the same networks at the same size.

    Returns:
        Sample key → provenance key of the units that were planned under this name before.

    Raises:
        ValueError: The name belongs to a face annotation, or to other latents.
    """
    if any(entry.version == version for entry in manifest.of_kind("annotation")):
        raise ValueError(f"{version} is a face annotation: choose another --version for the latents")
    before = plans.find_plan(storage, plans.encode_job(version))
    if before is None:
        return {}
    # Plans of the first release do not name their encoding.
    same = all(before[network]["sha256"] == about[network]["sha256"] for network in NETWORKS)
    settings = ("encoding", "width", "height")
    if not same or any({"encoding": FIRST_ENCODING, **before}[name] != about[name] for name in settings):
        raise ValueError(
            f"{version} was begun by another release, with other networks or another size"
            f" ({before['width']}x{before['height']}): choose another --version, or none"
        )
    return before["units"]


def _samples(manifest: DatasetManifest, index: Index) -> list[MediaSample]:
    """Media of every packed sample, kept by the filters or not: filters may change, shards do not."""
    return [
        MediaSample(
            key=row.key,
            num_frames=row.num_frames,
            file=media_shard_name(row.shard),
            members=tuple(row.media),
            content_sha256=manifest.media[row.shard].sha256,
        )
        for row in index.rows()
    ]


def _check_space(storage: Storage, version: str, units: Sequence[Unit], index: Index, frame_bytes: int) -> None:
    """Raise `JobStoppedError` before hours of work whose results would not fit on the disk."""
    ledger = Ledger(storage, plans.encode_job(version))
    pending = {unit.key for unit in units if not ledger.is_done(unit)}
    keys, lengths = index.texts("key"), index.numbers("num_frames")
    frames = sum(int(length) for key, length in zip(keys, lengths, strict=True) if key in pending)
    if not frames:
        return
    # Twice, because a result is in its unit's file until its shard is packed.
    wanted = 2 * frames * frame_bytes
    log.info("%s: %d frames to encode, %.2f GB", version, frames, frames * frame_bytes / 1e9)
    if storage.local_root is not None and (free := shutil.disk_usage(storage.local_root).free) < wanted:
        raise JobStoppedError(
            f"latents of {frames} frames at {frame_bytes / 1024:.1f} KiB each need {wanted / 1e9:.3g} GB while they are"
            f" packed (half of it then stays); {storage.uri} has {free / 1e9:.3g} GB left: make room, or choose smaller"
            " images"
        )


def _remove_unit_files(storage: Storage, version: str) -> None:
    """Latents are large, and a packed shard never changes: the units' own files are not needed any more."""
    job = plans.encode_job(version)
    for file in storage.list(dataroot.units(job), ".tar"):
        if dataroot.is_unit(file.path, job):
            storage.delete(file.path)


def _tell(tally: Tally, version: str, frame_bytes: int) -> None:
    """Log speed and size of what was encoded now."""
    if tally.committed:
        speed = tally.frames / max(tally.wall_seconds, 1e-9)
        log.info("%s: %d frames, %.1f frames/s, %d bytes per frame", version, tally.frames, speed, frame_bytes)


# --- its units --------------------------------------------------------------------------------------------------------


def plan_latents(
    samples: Iterable[MediaSample],
    version: str,
    settings: LatentSettings,
    provenance: Provenance,
    time_limit_s: float | None,
) -> list[Unit]:
    """Plan one unit per packed sample, in key order.

    Args:
        samples: Samples to encode.
        version: Name of the version.
        settings: Networks (their folders at paths that hold on every node) and size.
        provenance: Names and hashes of the networks.
        time_limit_s: Wall-clock limit of a unit in seconds; None: from the number and size of its frames.
    """
    sha256 = {name: provenance[name]["sha256"] for name in NETWORKS}
    libraries = library_versions(*LIBRARIES)
    # Seconds per frame: Stable Diffusion's VAE and CLIP take some 20 s per 512 x 512 image on one slow core.
    frame_s = 0.5 + 60.0 * settings.width * settings.height / 512**2
    return [
        Unit(
            job=plans.encode_job(version),
            key=sample.key,
            pkey=provenance_key(
                "latents",
                ENCODING,
                parameters={"width": settings.width, "height": settings.height},
                inputs={"key": sample.key, "shard": sample.content_sha256},
                models=sha256,
                libraries=libraries,
            ),
            function="orchestration.jobs.latents:run",
            payload=sample.payload()
            | {"settings": asdict(settings), "networks": {name: dict(provenance[name]) for name in NETWORKS}},
            source=sample.key,
            time_limit_s=time_limit_s or 180.0 + frame_s * sample.num_frames,
        )
        for sample in sorted(samples, key=lambda sample: sample.key)
    ]


# --- in a worker ------------------------------------------------------------------------------------------------------


def run(storage: Storage, unit: Unit) -> Output:
    """Encode one sample."""
    from orchestration.jobs.worker import pin_threads

    # The networks of the plan, and the media.
    pin_threads()
    settings = LatentSettings(**unit.payload["settings"])
    networks = unit.payload["networks"]
    encoder = _planned_encoder(settings, networks)
    clip = read_clip(storage, unit)
    # `latents` [F, 2·C, h, w] and `embedding` [F, D], in half precision: a row for each frame.
    columns = encode_frames(encoder, clip.frames(), settings.width, settings.height)
    clip.check_length(len(columns[LATENTS]))
    # Stored with the columns: how they were made, and the factor by which training scales the latents.
    about = {
        "encode_key": unit.pkey,
        "width": settings.width,
        "height": settings.height,
        **networks,
        "scaling_factor": encoder.vae.config["scaling_factor"],
        "libraries": library_versions(*LIBRARIES),
    }
    contents = encode_latents(unit.key, columns, about)
    return Output(contents=[(unit.key, clip.info.num_frames, contents)], details=about)


def _planned_encoder(settings: LatentSettings, networks: Provenance) -> ImageNetworks:
    """The networks of the plan, on the GPU that Ray gave this process, else on the CPU.

    Raises:
        JobStoppedError: This machine does not find the networks, or finds others.
    """
    # Ray shows a worker only the GPUs that its task was given, so "cuda" is the right one.
    device = "cuda" if settings.gpu_share and torch.cuda.is_available() else "cpu"
    encoder = _encoder(settings.vae, settings.image_encoder, device)
    for name, about in encoder.provenance().items():
        if about["sha256"] != networks[name]["sha256"]:
            raise JobStoppedError(
                f"this machine has the {name} {about['sha256'][:12]}…, the plan was made with"
                f" {networks[name]['sha256'][:12]}…: give every node the same weights in the same place, and the same"
                " versions of the libraries"
            )
    return encoder


@lru_cache(maxsize=1)
def _encoder(vae: str, image_encoder: str, device: str) -> ImageNetworks:
    """Load the networks, once per worker process."""
    torch.set_num_threads(1)  # the units are the parallelism
    try:
        encoder = ImageNetworks.load(vae, image_encoder)
    except (ValueError, OSError) as error:
        raise JobStoppedError(f"a worker cannot load the image networks: {error}") from error
    except (MemoryError, RuntimeError) as error:
        raise JobStoppedError(
            f"the image networks do not fit a worker's memory (--memory-gb gives more): {error}"
        ) from error
    return encoder.to(device)
