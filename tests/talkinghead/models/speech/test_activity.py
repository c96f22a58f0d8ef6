"""The network for speech activity: against the formulas written out, strict weights, and real sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from talkinghead.media.audio import read_whole_audio
from talkinghead.models.speech import activity
from talkinghead.models.speech.activity import SpeechActivity, load_speech_activity, probability_of_frames
from tests.support.speech_weights import formula_weights, published_weights


def written_out(weights: dict[str, torch.Tensor], samples: np.ndarray) -> np.ndarray:
    """The network piece by piece, in sums over arrays, float64."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}

    def convolve(x: np.ndarray, name: str, stride: int, padding: int) -> np.ndarray:
        kernel = w[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (padding, padding)))
        size = kernel.shape[2]
        columns = [x[:, start : start + size] for start in range(0, x.shape[1] - size + 1, stride)]
        made = np.stack([np.einsum("ock,ck->o", kernel, column) for column in columns], axis=1)
        return made + w[f"{name}.bias"][:, None] if f"{name}.bias" in w else made

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    hidden, cell, found = np.zeros(128), np.zeros(128), []
    for start in range(0, len(samples), 512):
        piece = np.zeros(576)
        before = samples[max(0, start - 64) : start + 512]
        offset = 64 - min(64, start)
        piece[offset : offset + len(before)] = before
        piece = np.concatenate([piece, piece[-2:-66:-1]])  # 64 mirrored samples
        waves = convolve(piece[None], "stft_conv", 128, 0)
        x = np.sqrt(waves[:129] ** 2 + waves[129:] ** 2)
        assert x.shape == (129, 4)
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            x = np.maximum(convolve(x, name, stride, 1), 0)
        gates = w["lstm_cell.weight_ih"] @ x[:, 0] + w["lstm_cell.bias_ih"]
        gates += w["lstm_cell.weight_hh"] @ hidden + w["lstm_cell.bias_hh"]
        enter, forget, new, leave = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        hidden = sigmoid(leave) * np.tanh(cell)
        last = w["final_conv.weight"][0, :, 0] @ np.maximum(hidden, 0) + w["final_conv.bias"][0]
        found.append(float(sigmoid(last)))
    return np.array(found)


@pytest.mark.parametrize("num_samples", [1, 511, 512, 513, 6400])
def test_it_computes_what_the_formulas_say(num_samples: int) -> None:
    network = SpeechActivity()
    network.load_state_dict(weights := formula_weights())
    samples = np.random.default_rng(0).normal(0, 0.3, num_samples).astype(np.float32)
    with torch.inference_mode():
        found = network(torch.from_numpy(samples)).numpy()
    expected = written_out(weights, samples)
    assert found.shape == (-(-num_samples // 512),)
    np.testing.assert_allclose(found, expected, atol=5e-7)
    assert num_samples < 6400 or np.ptp(expected) > 0.03, "it depends on the sound"


def test_long_sound_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SpeechActivity()
    network.load_state_dict(formula_weights())
    samples = torch.from_numpy(np.random.default_rng(1).normal(0, 0.3, 11 * 512 - 7).astype(np.float32))
    with torch.inference_mode():
        whole = network(samples)
        monkeypatch.setattr(activity, "_AT_ONCE", 3)
        torch.testing.assert_close(network(samples), whole, atol=1e-6, rtol=0)
        assert network(samples[:0]).shape == (0,)


def test_weights_must_be_this_networks(tmp_path: Path) -> None:
    good = formula_weights()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(good, file)
    network = load_speech_activity(file)
    assert all(torch.equal(tensor, good[name]) for name, tensor in network.state_dict().items())
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    name = "conv2.weight"
    faults = {
        "missing": {key: value for key, value in good.items() if key != name},
        "shape": {**good, name: good[name][:, :-1].contiguous()},
        "unknown": {**good, "conv9.weight": torch.zeros(1)},
        "NaN": {**good, name: torch.full_like(good[name], torch.nan)},
    }
    for fault, weights in faults.items():
        safetensors.torch.save_file(weights, file)
        with pytest.raises(ValueError, match="conv9" if fault == "unknown" else name) as caught:
            load_speech_activity(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_speech_activity(file)


def test_frames_lie_between_the_pieces() -> None:
    """A ramp over time stays one, whatever cuts it up."""
    pieces = (512 * (np.arange(100) + 0.5)) / 64_000
    frames = probability_of_frames(pieces, 80)
    np.testing.assert_allclose(frames[1:-1], (640 * (np.arange(80) + 0.5))[1:-1] / 64_000, atol=1e-9)
    assert probability_of_frames(np.array([0.3]), 1).tolist() == [0.3]


def test_published_weights_know_speech(media: Path) -> None:
    """Shares of pieces as Silero's own code gives them for these recordings."""
    network = load_speech_activity(published_weights())
    speech = read_whole_audio(media / "audio" / "speechbrain_LJ050-0131.wav")
    rng = np.random.default_rng(0)
    seconds = np.arange(3 * 16_000) / 16_000
    with torch.inference_mode():
        share = float((network(torch.from_numpy(speech)) >= 0.5).float().mean())
        assert 0.8 < share < 0.95
        for other in (0 * seconds, 0.1 * rng.normal(size=len(seconds)), 0.5 * np.sin(2 * np.pi * 50 * seconds)):
            assert float((network(torch.from_numpy(other.astype(np.float32))) >= 0.5).float().mean()) <= 0.01
