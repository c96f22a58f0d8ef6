"""Folder of an adapter: what fine-tuning has added to weights, a small share of their size.

adapter.json         task, rank, alpha, expression, and the hash of the weights that it belongs to
adapter.safetensors  `<layer>.lora_A` and `<layer>.lora_B`, and whole parameters that were trained next to them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from talkinghead.config import from_json
from talkinghead.files.foreign import read_json
from talkinghead.models.adapters.lora import merge
from talkinghead.models.weight_files import read_weights
from talkinghead.models.weights import state_hash
from talkinghead.provenance import pretty_json

ADAPTER = "adapter"
"""Name of the folder next to the merged weights."""
_ABOUT, _TENSORS = "adapter.json", "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Content of adapter.json."""

    task: str
    """Task that trained it, which tells what networks it is for."""
    match: str
    """Regular expression that chose the layers."""
    rank: int
    alpha: float
    base_sha256: str
    """`parameter_hash` of the weights that it was trained with."""
    also_train: str | None = None
    """Regular expression that chose the parameters that were trained next to the layers."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"rank {self.rank} and alpha {self.alpha} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory."""

    settings: AdapterSettings
    tensors: Mapping[str, Tensor] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Write a folder that `read` reads; it must not exist."""
        folder.mkdir()
        (folder / _ABOUT).write_bytes(pretty_json(asdict(self.settings)))
        # Not by `save_file`, whose file nobody else may read.
        content = save({name: value.contiguous() for name, value in self.tensors.items()})
        (folder / _TENSORS).write_bytes(content)

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read a folder.

        Raises:
            ValueError: It is no adapter, or a damaged one.
        """
        place = folder if (folder / _ABOUT).exists() or not (folder / ADAPTER).is_dir() else folder / ADAPTER
        try:
            settings = from_json(AdapterSettings, read_json(place / _ABOUT))
            return cls(settings=settings, tensors=read_weights(place / _TENSORS))
        except OSError as error:
            raise ValueError(
                f"there is no adapter in {folder} ({error.strerror}): give the adapter/ next to the weights of a"
                " training with --lora.match"
            ) from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"the adapter {place} is damaged: {error}; copy it again") from error

    def apply(self, networks: nn.Module, name: str, *, without: str | None = None) -> None:
        """Merge the adapter into weights in place.

        Args:
            networks: Networks with the names of the task's module, in float32.
            name: Name of the weights, for messages.
            without: Part of the names of tensors that the task's module lacks.

        Raises:
            ValueError: They are not the weights that it was trained with.
        """
        state = networks.state_dict()
        known = {key: value for key, value in state.items() if without is None or without not in key}
        if (found := state_hash(known)) != self.settings.base_sha256:
            raise ValueError(
                f"this adapter belongs to weights with sha256 {self.settings.base_sha256[:16]}…, and those of {name}"
                f" have {found[:16]}…: give the weights that its training began with (--config.init), or leave the"
                " adapter out and take the merged weights next to it"
            )
        merge(networks, self.tensors, self.settings.alpha / self.settings.rank)
