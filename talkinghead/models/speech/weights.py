"""Sources of a speech encoder's weights: a folder, or the tiny configuration, by name. Never silently random."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from talkinghead.models.speech.encoder import MODEL_TYPES, build_encoder
from talkinghead.models.weights import parameter_hash, quiet_libraries, weights_from
from talkinghead.provenance import hash_files

TINY = "tiny"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names of weights in a folder, in the order in which `transformers` looks for them."""

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
            model_type = _TINY_CONFIG["model_type"]
            return AutoConfig.for_model(model_type, **{k: v for k, v in _TINY_CONFIG.items() if k != "model_type"})
        file = Path(self.source) / "config.json"
        try:
            model_type = json.loads(file.read_bytes()).get("model_type")
        except OSError as error:
            raise ValueError(
                f"no speech encoder in {self.source}: {file} cannot be read ({error.strerror}). Give a folder with"
                f" config.json and weights (such as a copy of facebook/wav2vec2-base-960h), or {TINY!r}"
            ) from error
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file} is not the JSON of a model's configuration: copy the folder again") from error
        if model_type not in MODEL_TYPES:
            raise ValueError(f"{file} describes a model of type {model_type!r}; wanted is {' or '.join(MODEL_TYPES)}")
        return AutoConfig.from_pretrained(self.source, local_files_only=True)

    def _weight_files(self) -> list[Path]:
        """Files of the weights: one, or the parts that an index names."""
        folder = Path(self.source)
        named = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if named is None:
            raise ValueError(f"no weights in {folder}: wanted is one of {', '.join(WEIGHT_FILES)}")
        if named.suffix != ".json":
            return [named]
        parts = sorted(set(json.loads(named.read_bytes())["weight_map"].values()))
        return [folder / part for part in parts]

    def _folder_encoder(self) -> PreTrainedModel:
        """The folder's encoder with its weights, float32; errors name the file at fault."""
        # The likely faults first, as the library's own messages for them mislead.
        self._config()
        files = self._weight_files()
        if missing := [path.name for path in files if not path.is_file()]:
            raise ValueError(f"weights {_listed(missing)} are missing in {self.source}: copy the folder again")
        try:
            # Quiet, because the library's table of keys warns of the CTC head, which is not used here.
            with quiet_libraries():
                encoder, report = AutoModel.from_pretrained(
                    self.source, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"the weights in {self.source} ({_listed([path.name for path in files])}) cannot be read; the file is"
                f" damaged or cut short, copy it again ({first})"
            ) from error
        # The library fills missing tensors with random ones; that is an error here.
        missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
        odd = [str(key) for key in report["mismatched_keys"]]
        if missing or odd:
            raise ValueError(
                f"the weights in {self.source} are not of the encoder that its config.json describes:"
                f" {_listed(missing + odd)} missing or of another shape"
            )
        return encoder

    def _tiny(self) -> PreTrainedModel:
        with weights_from(0, "tiny speech encoder"):
            return build_encoder(self.wav2vec_config())


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
