"""Sources of a speech encoder's weights: a folder, or the tiny configuration, by name. Never silently random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from talkinghead.models.network_settings import CONFIG_FILE, read_settings
from talkinghead.models.speech.encoder import MODEL_TYPES, build_encoder, encoder_config
from talkinghead.models.weight_files import TRANSFORMERS_FILES, find_weight_files, read_folder
from talkinghead.models.weights import filled, parameter_hash, weights_from
from talkinghead.provenance import hash_files

TINY = "tiny"

_TINY_CONFIG: dict[str, Any] = {
    "model_type": "wav2vec2",
    # wav2vec 2.0's time scales (a feature sees 400 samples, 320 apart), a fraction of its width.
    "conv_dim": [32, 32, 32, 48, 48, 64, 64],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    # Norms in every layer and before every block, so that it trains from scratch: wav2vec2-base, with one group norm
    # and none after it, barely does. Nor does a frame depend on the padding after it.
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
# Fields of a configuration that do not change what the network computes.
_NOT_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")


_PREFIXES = {"wav2vec2": "wav2vec2.", "hubert": "hubert.", "wavlm": "wavlm.", "data2vec-audio": "data2vec_audio."}
"""`model_type` → beginning of the encoder's names in models with a head."""
_WEIGHT_NORM = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


def encoder_settings(config: PreTrainedConfig, dropout: float | None = 0.0) -> dict[str, Any]:
    """All settings of a speech encoder, none left to a library's default (see `Pretrained.wav2vec_config`)."""
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_ARCHITECTURE}
    values |= {"model_type": config.model_type, "layerdrop": 0.0, "apply_spec_augment": False}
    if dropout is not None:
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        values |= dict.fromkeys(names, dropout)
    return values


@dataclass(frozen=True)
class Pretrained:
    """Source of a speech encoder.

    Args:
        source: Path of a folder in the layout of `transformers` (`config.json` and weights); or `tiny`, a small encoder
            with first weights from a fixed seed, for tests and for recipes that train all of it.
    """

    source: str

    def wav2vec_config(self, *, dropout: float | None = 0.0) -> dict[str, Any]:
        """Configuration of the encoder, for the `wav2vec` argument of the models.

        Layer drop and SpecAugment are off: they would draw from global generators, and hide frames that must be
        predicted.

        Args:
            dropout: Dropout of hidden states, attention, activations and projected features; None: as in the folder.

        Raises:
            ValueError: The folder is missing, or holds something else; the message says what is wanted.
        """
        return encoder_settings(self._config(), dropout)

    def load_wav2vec(self, encoder: PreTrainedModel) -> None:
        """Fill an encoder with the source's weights, in place and in the encoder's precision.

        Args:
            encoder: Speech encoder (`audio_encoder`) of a model made with `wav2vec_config`.

        Raises:
            ValueError: Weights are missing, damaged or of another encoder; the message says which and where.
        """
        found = (self._tiny() if self.source == TINY else self._folder_encoder()).state_dict()
        wanted = encoder.state_dict()
        # The embedding that SpecAugment puts in place of hidden frames: unused here, and missing in some folders.
        found.setdefault("masked_spec_embed", wanted.get("masked_spec_embed", torch.zeros(0)))
        wrong = [name for name, tensor in wanted.items() if name not in found or found[name].shape != tensor.shape]
        if wrong:
            raise ValueError(f"the weights of {self.source} do not fit this encoder: {_listed(wrong)} differ in shape")
        # Tensors that the model has no place for, such as those of an adapter, are left out.
        encoder.load_state_dict({name: found[name] for name in wanted})

    def check(self) -> dict[str, str]:
        """Provenance of the weights, after reading them once, so that a fault is reported before any work begins.

        Raises:
            ValueError: The folder is missing, or weights are missing, damaged or of another encoder.
        """
        if self.source != TINY:
            self._folder_encoder()
        return self.provenance()

    def provenance(self) -> dict[str, str]:
        """Provenance of the weights: kind of source, name of the folder, sha256 of the weights.

        Raises:
            ValueError: The folder is missing or has no weights.
        """
        if self.source == TINY:
            return {"kind": TINY, "name": TINY, "sha256": parameter_hash(self._tiny())}
        whole = hash_files(self._weight_files())
        return {"kind": "folder", "name": Path(self.source).resolve().name, "sha256": whole}

    def _config(self) -> Any:
        """Configuration of `transformers`, after checks that the folder is there and of a known type."""
        if self.source == TINY:
            return encoder_config(_TINY_CONFIG)
        file = Path(self.source) / CONFIG_FILE
        try:
            settings = read_settings(file)
        except OSError as error:
            raise ValueError(
                f"no speech encoder in {self.source}: {file} cannot be read ({error.strerror}). Give a folder with"
                f" config.json and weights (such as a copy of facebook/wav2vec2-base-960h), or {TINY!r}"
            ) from error
        model_type = settings.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"{file} describes a model of type {model_type!r}; wanted is {' or '.join(MODEL_TYPES)}")
        try:
            # Adapters are left out: the encoder is used without.
            return encoder_config(settings | {"add_adapter": False})
        except (TypeError, ValueError, StrictDataclassError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{file} does not describe a {model_type} encoder ({text}): copy the folder again"
            ) from error

    def _weight_files(self) -> list[Path]:
        """Files of the weights: one, or the parts that an index names."""
        return find_weight_files(Path(self.source), TRANSFORMERS_FILES)

    def _folder_encoder(self) -> PreTrainedModel:
        """The folder's encoder with its weights, float32; errors name the file at fault."""
        # The likely faults first.
        config = self._config()
        folder, files = Path(self.source), self._weight_files()
        try:
            tensors = read_folder(folder, TRANSFORMERS_FILES)
        except ValueError as error:
            raise ValueError(
                f"the weights in {self.source} ({_listed([path.name for path in files])}) cannot be read; the file is"
                f" damaged or cut short, copy it again ({error})"
            ) from error
        # A model with a head, such as CTC's, has the encoder under a prefix.
        found = {
            _present_name(name.removeprefix(_PREFIXES[config.model_type])): value for name, value in tensors.items()
        }
        return filled(
            lambda: AutoModel.from_config(config),
            found,
            "encoder",
            folder,
            optional=("masked_spec_embed",),
            left_over=lambda _: True,
        )

    def _tiny(self) -> PreTrainedModel:
        with weights_from(0, "tiny speech encoder"):
            return build_encoder(self.wav2vec_config())


def _present_name(name: str) -> str:
    """Present name of a tensor; PyTorch once named those of a weight norm otherwise."""
    for old, new in _WEIGHT_NORM.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
