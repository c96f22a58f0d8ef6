"""LoRA in a training: the additions to a module, and the small folder next to the merged weights."""

from __future__ import annotations

from torch import Tensor, nn

from talkinghead.models.adapters.adapter_folder import Adapter, AdapterSettings
from talkinghead.models.adapters.lora import Lora
from talkinghead.models.weights import parameter_hash, weights_from
from train.config import LoraConfig


class Adaptation:
    """LoRA of a module in training.

    Args:
        built: Module of a task; its layers are changed in place, and all else is frozen.
        config: Which layers get additions, and of which rank.
        seed: Seed of the run.
        task: Name of the task.

    Raises:
        ValueError: No layer matches, or none of those is trained by the task.
    """

    def __init__(self, built: nn.Module, config: LoraConfig, seed: int, task: str) -> None:
        assert config.match is not None
        base_sha256 = parameter_hash(built)
        with weights_from(seed, "lora"):
            self.lora = Lora(built, config.match, config.rank, config.alpha, config.also_train)
        self.settings = AdapterSettings(
            task=task,
            match=config.match,
            rank=config.rank,
            alpha=config.alpha,
            also_train=config.also_train,
            base_sha256=base_sha256,
        )

    def adapter(self, tensors: dict[str, Tensor]) -> Adapter:
        """Adapter with these values of the trained parameters."""
        return Adapter(settings=self.settings, tensors=tensors)
