"""Network that tells speech from other sound: Silero VAD 6 for 16 kHz, with its published weights.

Source: Silero Team, "Silero VAD: pre-trained enterprise-grade Voice Activity Detector", MIT licence. The network is
written anew from the names and shapes of its weights; no code of theirs is needed, nor torchaudio.

The sound is cut into pieces of 512 samples (32 ms). Of each, with the 64 samples before it, a learnt short-time Fourier
transform and four convolutions make one vector, and an LSTM goes over the vectors from the beginning of the sound.

Dimensions: N samples, P = ceil(N / 512) pieces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from talkinghead.models.weight_files import read_weights
from talkinghead.timebase import SAMPLES_PER_FRAME

PIECE = 512
"""Samples of a piece, at 16 kHz."""
_CONTEXT = 64  # samples before a piece that it sees, and that are mirrored after it
_BINS = 129  # of the Fourier transform, each with a real and an imaginary row
_PEAK_QUANTILE, _PEAK = 0.999, 0.5
_AT_ONCE = 2048  # pieces whose vectors are computed at once: 65 s, 30 MB


class SpeechActivity(nn.Module):
    """Probability of speech in each piece of a sound."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples: Tensor) -> Tensor:
        """Probability of speech in each piece.

        Args:
            samples: Mono sound at 16 kHz in -1 … 1, `[N]`.

        Returns:
            `[P]` in 0 … 1; piece i is about the samples 512 i … 512 i + 511.
        """
        # Pieces with what comes before them; silence before the first and after the last.
        count = -(-len(samples) // PIECE)
        if not count:
            return samples.new_zeros(0)
        padded = functional.pad(samples, (_CONTEXT, count * PIECE - len(samples)))
        pieces = padded.unfold(0, _CONTEXT + PIECE, PIECE)
        # What a piece sounds like depends on it alone, so many are computed at once; whether it is speech also depends
        # on what was heard before.
        hidden = cell = samples.new_zeros(1, self.lstm_cell.hidden_size)
        heard: list[Tensor] = []
        for some in pieces.split(_AT_ONCE):
            for vector in self._vectors(some).split(1):
                hidden, cell = self.lstm_cell(vector, (hidden, cell))
                heard.append(hidden)
        return torch.sigmoid(self.final_conv(torch.cat(heard).relu()[:, :, None])).flatten()

    def _vectors(self, pieces: Tensor) -> Tensor:
        """What pieces sound like, `[P, 576]` → `[P, 128]`."""
        waves = self.stft_conv(functional.pad(pieces[:, None], (0, _CONTEXT), mode="reflect"))
        spectrum = (waves[:, :_BINS].square() + waves[:, _BINS:].square()).sqrt()
        hidden = self.conv1(spectrum).relu()
        for layer in (self.conv2, self.conv3, self.conv4):
            hidden = layer(hidden).relu()
        return hidden.squeeze(2)


def load_speech_activity(path: Path) -> SpeechActivity:
    """The network with the weights of a file.

    Args:
        path: File of the published tensors, `.safetensors`, or what `torch.save` wrote of them.

    Raises:
        ValueError: The file is missing or damaged, or holds other tensors than this network's.
    """
    found = read_weights(path)
    with torch.device("meta"):
        network = SpeechActivity()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if wrong := sorted(name for name in wanted.keys() | have.keys() if wanted.get(name) != have.get(name)):
        raise ValueError(
            f"{path} holds no weights of Silero VAD 6 at 16 kHz: {', '.join(map(repr, wrong[:5]))} missing, unknown or"
            " of another shape: give silero_vad_16k.safetensors as it is published"
        )
    weights = {name: tensor.to(torch.float32) for name, tensor in found.items()}
    if damaged := sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all()):
        raise ValueError(f"{path}: {damaged[0]} holds NaN or infinity: copy the file again")
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def at_one_level(audio: np.ndarray) -> np.ndarray:
    """Sound whose 99.9th percentile of absolute samples is half of full scale, cut off at full scale; float32 `[N]`.

    Silence stays silence.
    """
    peak = float(np.quantile(np.abs(audio), _PEAK_QUANTILE)) if len(audio) else 0.0
    return np.clip(audio * (_PEAK / peak), -1, 1).astype(np.float32) if peak > 0 else np.zeros_like(audio, np.float32)


def probability_of_frames(pieces: np.ndarray, num_frames: int) -> np.ndarray:
    """Probabilities of pieces (32 ms) as probabilities of video frames (40 ms): linear between their middles.

    Args:
        pieces: `[P]`, at least one piece.
        num_frames: Number of frames F.

    Returns:
        `[F]` float64.
    """
    middles = PIECE * (np.arange(len(pieces)) + 0.5)
    return np.interp(SAMPLES_PER_FRAME * (np.arange(num_frames) + 0.5), middles, pieces)
