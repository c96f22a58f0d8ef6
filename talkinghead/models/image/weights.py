"""Sources of the image networks' weights: a folder, or a named small configuration with fixed weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from talkinghead.models.image.cosine_vae import CLASS_NAMES, CosineVae
from talkinghead.models.weights import parameter_hash, quiet_libraries, weights_from
from talkinghead.provenance import canonical_json, hash_bytes

Part = Literal["vae", "image_encoder"]
"""Name of an image network, and of its subfolder in a pipeline's folder."""

VAES = ("tiny", "tiny-kl")
"""Names of small VAEs. `tiny`: a `CosineVae`, which needs no training. `tiny-kl`: a small `AutoencoderKL` with random
weights from a fixed seed, for tests: its latents mean nothing."""
IMAGE_ENCODERS = ("tiny", "small")
"""Names of small CLIP encoders with random weights from a fixed seed, as wide as the networks of these sizes expect."""

_TINY_KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
}
_CLIPS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "projection_dim": 64},
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "projection_dim": 256},
}
_CLIP_COMMON: dict[str, Any] = {"num_attention_heads": 4, "image_size": 64, "patch_size": 16}
_UNSEEN: dict[type[nn.Module], tuple[str, ...]] = {
    CosineVae: ("patch",),
    AutoencoderKL: ("act_fn", "norm_num_groups"),
    CLIPVisionModelWithProjection: ("hidden_act", "num_attention_heads", "image_size", "patch_size", "layer_norm_eps"),
}
"""Settings that change a network's results without changing its tensors; they belong in its fingerprint."""
_DAMAGE = (OSError, RuntimeError, TypeError, ValueError, KeyError, EOFError, SafetensorError)


def load_vae(source: str) -> AutoencoderKL | CosineVae:
    """VAE in single precision and evaluation mode.

    Args:
        source: One of `VAES`, or a folder in the layout of `diffusers` (such as `stabilityai/sd-vae-ft-mse`), or a
            folder with such a folder named `vae` in it.

    Raises:
        ValueError: The folder is missing, damaged, or not of a VAE; says what is needed.
    """
    if source == "tiny":
        return CosineVae().eval()
    if source == "tiny-kl":
        # The text is part of the seed: another one would give other weights.
        with weights_from(0, "tiny picture codec"):
            return AutoencoderKL(**_TINY_KL).eval()
    # The class that the folder names decides, from a fixed list: no code is looked up by a name in a file.
    folder, config = _folder(source, "vae")
    kinds: dict[object, type[AutoencoderKL] | type[CosineVae]] = {
        "AutoencoderKL": AutoencoderKL,
        **dict.fromkeys(CLASS_NAMES, CosineVae),
    }
    found = config.get("_class_name")
    if found not in kinds:
        raise ValueError(f"{folder / 'config.json'} describes {_kind(found)}; wanted is AutoencoderKL or CosineVae")
    return _loaded(kinds[found], folder, low_cpu_mem_usage=False).eval()


def load_image_encoder(source: str) -> CLIPVisionModelWithProjection:
    """CLIP image encoder in single precision and evaluation mode.

    Args:
        source: One of `IMAGE_ENCODERS`, or a folder in the layout of `transformers` (such as `image_encoder/` of
            `lambdalabs/sd-image-variations-diffusers`), or a folder with such a folder named `image_encoder` in it.

    Raises:
        ValueError: The folder is missing, damaged, or not of a CLIP image encoder; says what is needed.
    """
    if source in _CLIPS:
        with weights_from(0, f"{source} image encoder"):
            return CLIPVisionModelWithProjection(CLIPVisionConfig(**_CLIPS[source], **_CLIP_COMMON)).eval()
    folder, config = _folder(source, "image_encoder")
    if config.get("model_type") not in ("clip_vision_model", "clip"):
        raise ValueError(
            f"{folder / 'config.json'} describes {_kind(config.get('model_type'))}; wanted is the image encoder of CLIP"
            " (clip_vision_model)"
        )
    encoder: Any = CLIPVisionModelWithProjection
    # Tensors of another shape then appear in the report of `_loaded`, rather than in an error that names none.
    return _loaded(encoder, folder, dtype=torch.float32, ignore_mismatched_sizes=True).eval()


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's tensors in single precision and of the settings that change its results without them."""
    settings = {name: getattr(network.config, name) for name in _UNSEEN.get(type(network), ())}
    # Versions of latents are named by this hash: it keeps the name that the class had when the first ones were made.
    name = "CosineCodec" if isinstance(network, CosineVae) else type(network).__name__
    about = {"class": name, "settings": settings, "tensors": parameter_hash(network)}
    return hash_bytes(canonical_json(about))


def described(source: str, network: nn.Module) -> dict[str, str]:
    """Kind, name and SHA-256 of a network, to be written next to its results.

    Args:
        source: Source that the network was loaded from: a name, or a folder, of which only the last part is kept.
        network: The network.
    """
    if source in {*VAES, *IMAGE_ENCODERS}:
        return {"kind": "tiny", "name": source, "sha256": fingerprint(network)}
    return {"kind": "folder", "name": Path(source).resolve().name, "sha256": fingerprint(network)}


def _folder(source: str, part: Part) -> tuple[Path, dict[str, Any]]:
    """Folder of one network, and its configuration."""
    names = VAES if part == "vae" else IMAGE_ENCODERS
    place = Path(source)
    if not place.is_dir():
        raise ValueError(
            f"there is no folder {source!r} to read the {part} from. Give one with config.json and weights, or"
            f" {' or '.join(map(repr, names))}"
        )
    # A folder of a whole pipeline has the network in a subfolder.
    if not (place / "config.json").is_file() and (place / part).is_dir():
        place /= part
    file = place / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"no {part} in {source}: {file} cannot be read ({error.strerror}). Give a folder with config.json and"
            " weights, or one that has it as a subfolder of that name"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is not the JSON of a network's configuration: copy the folder again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not the JSON of a network's configuration: copy the folder again")
    return place, config


def _loaded(network: Any, folder: Path, **options: Any) -> Any:
    """Network from a folder, whose tensors must be exactly those of the network."""
    try:
        # Our own class checks this itself (`StrictModel`). Stock classes fill missing tensors with random numbers and
        # only log a warning, so their report is checked below.
        if issubclass(network, CosineVae):
            return network.from_pretrained(folder)
        with quiet_libraries():
            model, report = network.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except _DAMAGE as error:
        text = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        raise ValueError(
            f"the weights in {folder} cannot be read; they are missing, damaged or cut short, copy the folder again"
            f" ({text})"
        ) from error
    # A file of the whole CLIP has a text half, and older files a table of positions that is computed now.
    left_over = [key for key in report["unexpected_keys"] if not _expected(key)]
    wrong = [*report["missing_keys"], *left_over, *map(str, report["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"the weights in {folder} are not of the {network.__name__} that its config.json describes:"
            f" {len(wrong)} tensors missing, left over or of another shape: {_listed(wrong)}"
        )
    return model


def _expected(key: str) -> bool:
    return key.startswith(("text_model.", "text_projection.", "logit_scale")) or key.endswith(".position_ids")


def _kind(found: object) -> str:
    return f"a network of kind {found!r}" if found else "no kind of network"


def _listed(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
