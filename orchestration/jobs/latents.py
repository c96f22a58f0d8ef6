"""Latents as units: one per packed sample and version. What training would encode in every step, encoded once."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestration.unit import Output, Unit
from shards.latents import EMBEDDING, ENCODING, LATENTS, NETWORKS
from talkinghead.provenance import canonical_json, hash_bytes, library_versions, pretty_json, provenance_key
from talkinghead.schema import ClipInfo, Member
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from talkinghead.models.picture_encoder import PictureEncoder

PREFIX = "encode-"
LIBRARIES = ("av", "opencv-contrib-python", "numpy", "torch", "diffusers", "transformers")
_PIXELS_AT_ONCE = 1 << 20
"""Pixels of the pictures that are encoded in one call: 4 of 512 x 512. More costs memory and saves no time."""


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Which networks encode which pictures."""

    vae: str
    """Codec: `tiny`, or a folder in the layout of diffusers (such as sd-vae-ft-mse)."""
    image_encoder: str
    """CLIP image encoder: `tiny`, `small`, or a folder in the layout of transformers."""
    width: int = 512
    """Of the pictures, pixels; clips of another shape are cut to it around their middle."""
    height: int = 512
    gpu_share: float = 0.5
    """Share of a GPU that a worker takes, where the cluster has GPUs: two workers keep one busy, one reading while the
    other encodes. 0: encode on CPUs."""

    def __post_init__(self) -> None:
        if not 0 <= self.gpu_share <= 1:
            raise ValueError(f"gpu_share must lie in 0 … 1, not {self.gpu_share}")


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """Where a packed sample's media lie."""

    key: str
    num_frames: int
    file: str
    file_sha256: str
    """Of the whole shard: with the key it names the content."""
    members: tuple[Member, ...]


def job_name(version: str) -> str:
    """`encode-<version>`: each version has a ledger of its own."""
    return f"{PREFIX}{version}"


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
            job=job_name(version),
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

    from orchestration.jobs.face import pin_threads
    from orchestration.jobs.pictures import planned_encoder
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


def encode_frames(
    encoder: PictureEncoder, frames: Iterable[np.ndarray], width: int, height: int
) -> dict[str, np.ndarray]:
    """The columns of a clip.

    Args:
        encoder: The networks.
        frames: RGB uint8 `[H, W, 3]` each.
        width: Of the pictures that are encoded.
        height: The same.

    Returns:
        `latents` float16 `[F, 2·C, h, w]` and `embedding` float16 `[F, D]`.
    """
    import torch

    from talkinghead.media.picture_size import fit_pictures

    parts: dict[str, list[np.ndarray]] = {LATENTS: [], EMBEDDING: []}
    at_once = max(1, _PIXELS_AT_ONCE // (width * height))
    for batch in _batches(iter(frames), at_once):
        pictures = torch.from_numpy(fit_pictures(np.stack(batch).transpose(0, 3, 1, 2), width, height))
        try:
            parts[LATENTS].append(encoder.moments(pictures).cpu().numpy())
            parts[EMBEDDING].append(encoder.embedding(pictures).cpu().numpy())
        except RuntimeError as error:
            if "allocate" not in str(error):  # PyTorch has no class of its own for memory of the CPU
                raise
            raise MemoryError(f"encoding {len(batch)} pictures of {width}x{height} needs more memory") from error
    if not parts[LATENTS]:
        raise ValueError("the clip has no frames")
    return {name: np.concatenate(values) for name, values in parts.items()}


def device(settings: LatentSettings) -> str:
    """Where this process encodes: on the GPU that Ray gave it, else on the CPU."""
    import torch

    return "cuda" if settings.gpu_share and torch.cuda.is_available() else "cpu"


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    stored: Any = np.ascontiguousarray(values, "<f2")
    np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
