"""What the models that hear speech share."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from talkinghead.models.speech_features import freeze_feature_extractor, repeated_blocks
from talkinghead.models.strict_model import StrictModel


class SpeechModel(StrictModel):
    """A model whose first part, `audio_encoder`, is a speech encoder."""

    audio_encoder: PreTrainedModel
    _supports_gradient_checkpointing = True

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers: units of sharding, compiling and activation checkpointing."""
        return repeated_blocks(self.audio_encoder)

    def freeze_cnn(self) -> None:
        """Do not train the convolutions of the speech encoder."""
        freeze_feature_extractor(self.audio_encoder)
