"""Latents of a clip: training would encode its frames in every step, so they are encoded once and stored as columns.

A VAE gives the mean and the logarithm of the variance of each frame's latents, a CLIP image encoder its embedding.
`talkinghead/latents.py` says how they are stored and how far off that is.

A thread decodes, cuts and resizes the next images while the device encodes the last ones. Precision, device and number
of images in a call are part of a version's name: a GPU rounds otherwise than a CPU, TF32 otherwise than single
precision, and another number of images may be computed in another order (measured: also on a CPU). A call holds
consecutive images of one clip, so what is stored of it depends on no other clip. GPUs of different models may still
differ in the last bits.

Shapes: `F` frames; `C` channels of the VAE's latents; `h`, `w` height and width of the latents; `D` size of the
embedding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from talkinghead import latents as stored
from talkinghead.derived import ColumnError, ColumnSample, Derived, DerivedColumn, Fit, Provenance, StoredNames
from talkinghead.runtime.read_ahead import read_ahead

if TYPE_CHECKING:  # PyTorch takes seconds to import, and the command line needs only the settings
    import torch

    from talkinghead.models.image.networks import ImageNetworks

LIBRARIES = ("av", "opencv-contrib-python", "numpy", "torch", "diffusers", "transformers")
"""Distributions in the provenance keys: they decode the videos, resize the frames and compute the networks."""

BUILT_IN = ("tiny", "tiny-kl", "small")
"""Networks that need no folder (`VAES` and `IMAGE_ENCODERS` of `talkinghead/models/image/weights.py`)."""

Precision = Literal["fp32", "tf32", "bf16"]
"""How the networks compute: single precision, its products rounded to TF32 (GPUs), or weights and products in bf16."""

_MOST_IMAGES = 32  # in a call
_LARGEST_CALL = 12 << 30
"""Bytes of activations that a call may take on a GPU: they fit one of 16 GB, next to the networks."""
_FULL_SIZE_TENSORS = 5
"""Tensors of the images' own size that an `AutoencoderKL` holds at once: in its first blocks the input of a residual
block, what is normalised, activated and convolved of it, and the workspace of the convolution."""
_CPU_PIXELS = 1 << 20
"""Pixels of the images in a call on a CPU, 4 of 512 x 512, and of version 1 on any device. More costs memory and saves
no time: a core is busy with one image, and what a call leaves is no longer in its cache."""
_READY = 2  # calls' images that the reading thread holds ready


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Networks that encode, and the size of the images that they get."""

    vae: str
    """VAE: `tiny`, or a folder in the layout of diffusers (such as sd-vae-ft-mse)."""
    image_encoder: str
    """CLIP image encoder: `tiny`, `small`, or a folder in the layout of transformers."""
    width: int = 512
    """Width of the images, pixels; clips of another shape are cut to it around their middle."""
    height: int = 512
    """Height of the images, pixels."""
    precision: Precision = "fp32"
    """fp32: single precision, TF32 off. tf32: products rounded to TF32, on GPUs only. bf16: weights and products in
    bf16. The version's name depends on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device that encodes; the version's name depends on it. auto: cuda where the machine that runs the command
    has a GPU, and gpu_share is not 0."""
    images_per_call: int = 0
    """Images that are encoded in one call, 1 to 32; the version's name depends on it. 0: as many as fit 12 GiB of
    activations on a GPU, 4 of 512 x 512 pixels on a CPU."""
    gpu_share: float = 1.0
    """Share of a GPU that a worker takes. One worker keeps a GPU busy, since a thread of it decodes while the GPU
    encodes; several need a GPU that is not in exclusive mode. 0: encode on CPUs."""

    def __post_init__(self) -> None:
        if not 0 <= self.gpu_share <= 1:
            raise ValueError(f"gpu_share must lie in 0 … 1, not {self.gpu_share}")
        if not 0 <= self.images_per_call <= _MOST_IMAGES:
            raise ValueError(f"images_per_call must lie in 0 … {_MOST_IMAGES}, not {self.images_per_call}")
        if self.device == "cuda" and not self.gpu_share:
            raise ValueError("device cuda needs a gpu_share above 0")
        if self.device == "cpu" and self.precision == "tf32":
            raise ValueError("only GPUs round to TF32: take precision fp32 or bf16 for the device cpu")


# --- the networks -----------------------------------------------------------------------------------------------------

_looked_at: dict[tuple[str, str], ImageNetworks] = {}
"""Networks whose provenance was asked for last, by their sources, so that a worker computes with what was hashed."""


def network_provenance(settings: LatentSettings) -> Provenance:
    """Kind, name and SHA-256 of both networks, which are read anew.

    Raises:
        ValueError: They cannot be read, or the size of the images does not fit them.
        MemoryError: They need more memory than there is.
    """
    from talkinghead.models.image.networks import check_image_size

    _looked_at.clear()
    networks = _networks(settings)
    check_image_size(settings.width, settings.height, networks.vae)
    return networks.provenance()


def settled(settings: LatentSettings) -> LatentSettings:
    """Settings with the device that `auto` means here, and the number of images in a call.

    Raises:
        ValueError: The device does not compute with the precision.
    """
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if settings.gpu_share and torch.cuda.is_available() else "cpu"
    images = settings.images_per_call or images_that_fit(_networks(settings), settings, device)
    return replace(settings, device=device, images_per_call=images)


def images_that_fit(networks: ImageNetworks, settings: LatentSettings, device: str) -> int:
    """Images in a call, 1 to 32, by their activations, counted; it does not depend on the memory that is free."""
    pixels = settings.width * settings.height
    if device == "cpu":
        return max(1, min(_MOST_IMAGES, _CPU_PIXELS // pixels))
    # An AutoencoderKL is widest at full size; a CosineVae has nothing larger than the image.
    channels = networks.vae.config.get("block_out_channels", (3,))[0]
    number = 2 if settings.precision == "bf16" else 4  # bytes
    return max(1, min(_MOST_IMAGES, _LARGEST_CALL // (_FULL_SIZE_TENSORS * channels * pixels * number)))


def bytes_per_frame(settings: LatentSettings) -> float:
    """Bytes that one frame's latents and embedding take in a shard."""
    return stored.HEAD_BYTES + _frame_bytes(settings, of_moments=2 + 1)


def _frame_bytes(settings: LatentSettings, *, of_moments: int) -> float:
    """Bytes of a frame's embedding, and of its moments with so many for each latent."""
    networks = _networks(settings)
    positions = (settings.width // networks.scale) * (settings.height // networks.scale)
    return float(of_moments * networks.channels * positions + 2 * networks.embedding_size)


def _networks(settings: LatentSettings) -> ImageNetworks:
    """Networks of the settings: those that were looked at last, else read now."""
    from talkinghead.models.image.networks import ImageNetworks

    sources = (settings.vae, settings.image_encoder)
    if sources not in _looked_at:
        _looked_at.clear()
        with _enough_memory("the image networks need more memory than there is"):
            _looked_at[sources] = ImageNetworks.load(*sources)
    return _looked_at[sources]


@contextlib.contextmanager
def _enough_memory(message: str) -> Iterator[None]:
    """Raise `MemoryError` where PyTorch, which has no class of its own for memory of the CPU, says so in a text."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise MemoryError(message) from error


@contextlib.contextmanager
def _computing(precision: Precision | None) -> Iterator[None]:
    """Context in which products of this process have a precision, whatever was set before, and are the same each time.

    None: as PyTorch is without settings, which rounds convolutions to TF32 on GPUs, and nothing else.
    """
    import torch

    convolutions = precision in ("tf32", None)
    cudnn: Any = torch.backends.cudnn  # a module that PyTorch replaces by an object with these properties
    before = (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = convolutions, True, False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before[1:]


# --- a clip -----------------------------------------------------------------------------------------------------------


def open_latents(settings: LatentSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that encodes the frames of a sample.

    Args:
        settings: Networks and size of the images, settled.
        fits: None.
        device: Device of the networks, `cpu` or `cuda`.

    Raises:
        ValueError: The networks cannot be read.
        MemoryError: They need more memory than there is.
    """
    del fits
    networks = _on_device(settings, device, settings.precision)
    ways = {"precision": settings.precision, "device": settings.device, "images_per_call": settings.images_per_call}
    about = _about(networks, settings) | ways

    def encode(sample: ColumnSample) -> Derived:
        clip_size = sample.info.width, sample.info.height
        if max(clip_size) > stored.LARGEST_NUMBER:
            width, height = clip_size
            raise ColumnError(
                "shape",
                f"the clip has {width} x {height} pixels, with latents at most {stored.LARGEST_NUMBER} a side are"
                " stored: ingest it at a smaller size",
            )
        with _computing(settings.precision):
            moments, embedding = encode_frames(
                networks, sample.video(), settings.width, settings.height, settings.images_per_call
            )
        mean, log_variance = np.split(moments, 2, axis=1)
        try:
            rows = stored.LatentRows(
                mean=mean,
                log_variance=stored.encode_log_variance(log_variance),
                embedding=embedding,
                clip_size=clip_size,
            ).pack()
        except ValueError as error:
            raise ColumnError("range", f"{error}: these weights do not fit") from error
        return Derived(arrays={stored.ROWS: rows}, about=about)

    return encode


def open_moments(settings: LatentSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that encodes the frames of a sample as version 1 did; arguments and errors as of `open_latents`."""
    del fits
    networks = _on_device(settings, device, "fp32")
    images = max(1, _CPU_PIXELS // (settings.width * settings.height))
    about = _about(networks, settings)

    def encode(sample: ColumnSample) -> Derived:
        with _computing(None):
            moments, embedding = encode_frames(networks, sample.video(), settings.width, settings.height, images)
        return Derived(arrays={stored.LATENTS: moments, stored.EMBEDDING: embedding}, about=about)

    return encode


def _on_device(settings: LatentSettings, device: str, precision: Precision) -> ImageNetworks:
    """Networks of the settings, no longer kept for others."""
    import torch

    torch.set_num_threads(1)  # the samples are the parallelism
    networks = _networks(settings)
    _looked_at.clear()  # they are the caller's now
    with _enough_memory(f"the image networks need more memory than there is on {device}"):
        return networks.to(device, torch.bfloat16 if precision == "bf16" else None)


def _about(networks: ImageNetworks, settings: LatentSettings) -> dict[str, Any]:
    """What is noted with each sample."""
    return {
        "width": settings.width,
        "height": settings.height,
        **networks.provenance(),
        "scaling_factor": networks.vae.config["scaling_factor"],  # by which training multiplies the latents
    }


def encode_frames(
    networks: ImageNetworks, frames: Iterable[np.ndarray], width: int, height: int, images_per_call: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the latents, and embeddings, of a clip.

    Args:
        networks: VAE and CLIP image encoder.
        frames: RGB uint8 `[H, W, 3]` each; a thread of its own takes them.
        width: Width of the images that are encoded, pixels.
        height: Height of the images that are encoded, pixels.
        images_per_call: Images that are encoded in one call.

    Returns:
        Moments float16 `[F, 2·C, h, w]` and embeddings float16 `[F, D]`, all of them finite.

    Raises:
        ColumnError: No frames, or numbers that half precision cannot hold.
        MemoryError: The networks need more memory than there is.
    """
    moments: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    pinned = networks.device.type == "cuda"  # where a GPU can fetch them while the thread goes on
    with read_ahead(_calls(iter(frames), width, height, images_per_call, pinned=pinned), _READY) as calls:
        for images in calls:
            what = f"{len(images)} images of {width}x{height}"
            with _enough_memory(f"encoding {what} needs more memory: set images_per_call to fewer"):
                images = images.to(networks.device, non_blocking=True)
                moments.append(networks.moments(images).cpu().numpy())
                embeddings.append(networks.embedding(images).cpu().numpy())
    if not moments:
        raise ColumnError("shape", "the clip has no frames")
    made = {"latents": np.concatenate(moments), "embedding": np.concatenate(embeddings)}
    # Half precision overflows to inf, which would spoil a training much later.
    for name, values in made.items():
        if not np.isfinite(values).all():
            cause = "nan" if np.isnan(values).any() else "range"
            raise ColumnError(cause, f"the {name} are not finite in half precision: these weights do not fit")
    return made["latents"], made["embedding"]


def _calls(
    frames: Iterator[np.ndarray], width: int, height: int, images_per_call: int, *, pinned: bool
) -> Iterator[torch.Tensor]:
    """Images of one call after the other, in order, uint8 `[n, 3, height, width]`; pinned: in page-locked memory."""
    import torch

    from talkinghead.media.image_size import fit_images

    while batch := list(itertools.islice(frames, images_per_call)):
        # Cut and resized by training's own rule.
        images = torch.from_numpy(fit_images(np.stack(batch).transpose(0, 3, 1, 2), width, height))
        yield images.pin_memory() if pinned else images


# --- the column -------------------------------------------------------------------------------------------------------

_NAMES = StoredNames(job="encode-", provenance="latents", key_field="encode_key", failed="encode_failed")

_VERSION_1 = DerivedColumn(
    name=stored.LATENTS,
    version=1,
    arrays=stored.MOMENT_FORMS,
    needs=("mp4",),
    settings=LatentSettings,
    provenance=network_provenance,
    settled=settled,
    open=open_moments,
    libraries=LIBRARIES,
    resources=("gpu_share", "precision", "device", "images_per_call"),  # its versions did not tell them apart
    built_in=BUILT_IN,
    frame_bytes=lambda settings: _frame_bytes(settings, of_moments=2 + 2),
    frame_seconds=lambda settings: LATENTS.frame_seconds(settings),
    names=_NAMES,
)

LATENTS = DerivedColumn(
    name=stored.LATENTS,
    version=2,
    arrays=stored.ROW_FORMS,
    needs=("mp4", "json"),
    settings=LatentSettings,
    provenance=network_provenance,
    settled=settled,
    open=open_latents,
    libraries=LIBRARIES,
    resources=("gpu_share",),
    built_in=BUILT_IN,
    frame_bytes=bytes_per_frame,
    # Stable Diffusion's VAE and CLIP take some 20 s per 512 x 512 image on one slow core.
    frame_seconds=lambda settings: 0.5 + 60.0 * settings.width * settings.height / 512**2,
    names=_NAMES,
    former=(_VERSION_1,),
)
