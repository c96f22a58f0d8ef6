"""Sources of the image networks' weights: a folder, or a named small configuration with fixed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, PreTrainedConfig

from talkinghead.models.image.cosine_vae import CLASS_NAMES, CosineVae
from talkinghead.models.network_settings import CONFIG_FILE, arguments_of, declared, read_settings
from talkinghead.models.weight_files import DIFFUSERS_FILES, TRANSFORMERS_FILES, read_folder
from talkinghead.models.weights import filled, parameter_hash, weights_from
from talkinghead.provenance import canonical_json, hash_bytes
from talkinghead.runtime.errors import error_text

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
_CLIP_SETTINGS = sorted(CLIPVisionConfig().to_dict().keys() - PreTrainedConfig().to_dict().keys())
"""Settings of CLIP's image encoder; those that every model of `transformers` has stay as they are by default."""
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names within the VAE's attention in older files → the present ones."""


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
        raise ValueError(f"{folder / CONFIG_FILE} describes {_kind(found)}; wanted is AutoencoderKL or CosineVae")
    kind: Any = kinds[found]
    if kind is CosineVae:
        return CosineVae.from_pretrained(folder)
    try:
        settings = declared(config, arguments_of(kind))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} describes no VAE: {error}") from error
    tensors = {_present_name(name): value for name, value in _tensors(folder, DIFFUSERS_FILES).items()}
    return filled(lambda: kind(**settings), tensors, kind.__name__, folder).eval()


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
            f"{folder / CONFIG_FILE} describes {_kind(config.get('model_type'))}; wanted is the image encoder of CLIP"
            " (clip_vision_model)"
        )
    settings = vision_config(config, str(folder / CONFIG_FILE))
    # A file of the whole CLIP has a text half, and older files a table of positions that is computed now.
    return filled(
        lambda: CLIPVisionModelWithProjection(settings),
        _tensors(folder, TRANSFORMERS_FILES),
        CLIPVisionModelWithProjection.__name__,
        folder,
        left_over=_expected,
        tables=_number_positions,
    ).eval()


def vision_config(settings: Mapping[str, Any], name: str) -> CLIPVisionConfig:
    """Configuration of CLIP's image encoder from a `config.json`: its own, or that of a whole CLIP.

    Args:
        settings: Content of the file.
        name: Name of the file, for the message.

    Raises:
        ValueError: A setting is of another kind.
    """
    # The whole CLIP has the image encoder's settings in a part of its own.
    part = settings.get("vision_config") if settings.get("model_type") == "clip" else settings
    try:
        return CLIPVisionConfig(**declared(part if isinstance(part, Mapping) else {}, _CLIP_SETTINGS))
    except (TypeError, ValueError, StrictDataclassError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} does not describe an image encoder ({text}): copy the folder again") from error


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
    file = place / CONFIG_FILE
    try:
        return place, read_settings(file)
    except OSError as error:
        raise ValueError(
            f"no {part} in {source}: {file} cannot be read ({error.strerror}). Give a folder with config.json and"
            " weights, or one that has it as a subfolder of that name"
        ) from error


def _tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of the weights in a folder by name."""
    try:
        return read_folder(folder, names)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the weights in {folder} cannot be read; they are missing, damaged or cut short, copy the folder again"
            f" ({error_text(error)})"
        ) from error


def _present_name(name: str) -> str:
    """Present name of a tensor of `AutoencoderKL`, whose attention once had other names."""
    for old, new in _RENAMED.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _number_positions(encoder: CLIPVisionModelWithProjection) -> None:
    embeddings: Any = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]


def _expected(key: str) -> bool:
    return key.startswith(("text_model.", "text_projection.", "logit_scale")) or key.endswith(".position_ids")


def _kind(found: object) -> str:
    return f"a network of kind {found!r}" if found else "no kind of network"
