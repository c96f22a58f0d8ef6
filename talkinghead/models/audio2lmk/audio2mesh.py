"""Audio2Mesh: speech to face mesh.

Letters:
    B recordings, N audio samples, T video frames, D width of the speech encoder, L vertices of the mesh.
"""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from talkinghead.models.speech.encoder import SpeechModel, build_encoder, encode_speech, frame_rate


class Audio2Mesh(SpeechModel):
    """Speech to the offsets of the mesh from the speaker's neutral mesh: a speech encoder and two linear layers.

    Names and shapes of the parameters are those of AniPortrait's published `audio2mesh.pt` (arXiv 2403.17694); the
    layers have no activation between them, as there.

    Args:
        wav2vec: Configuration of the speech encoder (`Pretrained.wav2vec_config`).
        hidden: Width between the two linear layers.
        num_vertices: L.
        fps: Frame rate that the model was trained at.
        smoothing: Number of frames of the centred moving average that inference puts over the mesh; 1: none.
    """

    @register_to_config
    def __init__(
        self,
        wav2vec: dict[str, Any],
        hidden: int = 512,
        num_vertices: int = 468,
        fps: float = 25.0,
        smoothing: int = 1,
    ) -> None:
        super().__init__()
        frame_rate(fps)
        if smoothing < 1 or smoothing % 2 == 0:
            raise ValueError(f"smoothing {smoothing} must be odd and positive, so that it has a middle frame")
        # Read by inference only; the network takes any number of frames.
        self.fps = fps
        self.smoothing = smoothing
        self.num_vertices = num_vertices
        self.audio_encoder = build_encoder(wav2vec)
        self.in_fn = nn.Linear(int(self.audio_encoder.config.hidden_size), hidden)
        self.out_fn = nn.Linear(hidden, num_vertices * 3)
        # Zeros, so that an untrained model predicts the neutral mesh.
        nn.init.zeros_(self.out_fn.weight)
        nn.init.zeros_(self.out_fn.bias)

    def forward(self, samples: Tensor, num_frames: int, mask: Tensor | None = None) -> Tensor:
        """Offsets of the mesh in each frame.

        Args:
            samples: Audio samples `[B, N]`, 16 kHz, normalised over the recording (`speech.encoder.normalise`).
            num_frames: T, the frames that the samples span.
            mask: `[B, T]` bool, False after a recording's end.

        Returns:
            `[B, T, L, 3]`, centimetres in canonical face space, to be added to the speaker's neutral mesh.
        """
        features = encode_speech(self.audio_encoder, samples, num_frames, mask)  # [B, T, D]
        offsets = self.out_fn(self.in_fn(features))  # [B, T, 3 L]
        return offsets.unflatten(-1, (self.num_vertices, 3))
