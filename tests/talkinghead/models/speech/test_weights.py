"""Sources of speech encoders: never random weights, and clear errors about folders that hold something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.encoder import build_encoder
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import parameter_hash
from talkinghead.provenance import hash_file


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as wav2vec2-base-960h: the encoder under a prefix, next to a head."""
    folder = tmp_path_factory.mktemp("weights") / "ctc"
    torch.manual_seed(1)
    config: dict[str, Any] = {k: v for k, v in Pretrained("tiny").wav2vec_config().items() if k != "model_type"}
    config |= {"hidden_dropout": 0.1, "layerdrop": 0.1}
    Wav2Vec2ForCTC(Wav2Vec2Config(**config)).save_pretrained(folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_tiny_is_the_same_whatever_the_global_generator_and_leaves_it_alone() -> None:
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        source = Pretrained("tiny")
        encoder = build_encoder(source.wav2vec_config())
        torch.set_rng_state(before)
        source.load_wav2vec(encoder)
        assert torch.equal(torch.get_rng_state(), before)
        hashes.append(parameter_hash(encoder))
        assert source.provenance() == {"kind": "tiny", "name": "tiny", "sha256": hashes[0]}
    assert hashes[0] == hashes[1]


def test_what_would_draw_at_random_is_off_and_dropout_can_be_set(ctc_folder: Path) -> None:
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    for source in (Pretrained("tiny"), Pretrained(str(ctc_folder))):
        config = source.wav2vec_config()
        assert (config["layerdrop"], config["apply_spec_augment"]) == (0.0, False)
        assert [config[name] for name in names] == [0.0] * 4
        assert [source.wav2vec_config(dropout=0.2)[name] for name in names] == [0.2] * 4
        assert json.loads(json.dumps(config)) == config
    assert Pretrained(str(ctc_folder)).wav2vec_config(dropout=None)["hidden_dropout"] == 0.1


def test_a_folder_fills_the_encoder(ctc_folder: Path) -> None:
    source = Pretrained(str(ctc_folder))
    model = Audio2Mesh(source.wav2vec_config(), hidden=8)
    source.load_wav2vec(model.audio_encoder)
    stored = safetensors.torch.load_file(ctc_folder / "model.safetensors")
    name = "encoder.layers.1.feed_forward.output_dense.weight"
    assert torch.equal(model.audio_encoder.state_dict()[name], stored[f"wav2vec2.{name}"])
    assert source.provenance() == {
        "kind": "folder",
        "name": "ctc",
        "sha256": hash_file(ctc_folder / "model.safetensors"),
    }


def test_old_names_and_torch_files_fill_it_too(ctc_folder: Path, tmp_path: Path) -> None:
    folder = copied(ctc_folder, tmp_path / "old")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    (folder / "model.safetensors").unlink()
    torch.save(old, folder / "pytorch_model.bin")
    encoders = [build_encoder(Pretrained("tiny").wav2vec_config()) for _ in range(2)]
    for source, encoder in zip((folder, ctc_folder), encoders, strict=True):
        Pretrained(str(source)).load_wav2vec(encoder)
    assert parameter_hash(encoders[0]) == parameter_hash(encoders[1])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_told(ctc_folder: Path, tmp_path: Path, share: float) -> None:
    folder = copied(ctc_folder, tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    encoder = build_encoder(Pretrained(str(folder)).wav2vec_config())
    with pytest.raises(ValueError, match="damaged or cut short") as caught:
        Pretrained(str(folder)).load_wav2vec(encoder)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_told_and_not_drawn(ctc_folder: Path, tmp_path: Path) -> None:
    folder = copied(ctc_folder, tmp_path / "lacking")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["wav2vec2.encoder.layers.0.attention.k_proj.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"k_proj\.weight missing"):
        Pretrained(str(folder)).load_wav2vec(build_encoder(Pretrained("tiny").wav2vec_config()))


def test_weights_of_another_size_are_told(ctc_folder: Path, tmp_path: Path) -> None:
    folder = copied(ctc_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 192}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"damaged|not of the encoder"):
        Pretrained(str(folder)).load_wav2vec(build_encoder(Pretrained(str(folder)).wav2vec_config()))
    with pytest.raises(ValueError, match="do not fit this encoder"):
        Pretrained(str(ctc_folder)).load_wav2vec(build_encoder(Pretrained(str(folder)).wav2vec_config()))


def test_odd_folders_are_told(ctc_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no speech encoder in .*nowhere"):
        Pretrained(str(tmp_path / "nowhere")).wav2vec_config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not the JSON"):
        Pretrained(str(tmp_path)).wav2vec_config()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        Pretrained(str(tmp_path)).wav2vec_config()
    (tmp_path / "config.json").write_bytes((ctc_folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="no weights in"):
        Pretrained(str(tmp_path)).provenance()
