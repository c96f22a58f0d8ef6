"""The published files: every key has its place or is reported, and the networks compute the published function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoding import decode, generate
from talkinghead.models.audio2lmk.published import Kind, load_published
from talkinghead.models.speech.encoder import normalise
from tests.support.golden_weights import golden_shapes, golden_state

G = ".pos_conv_embed.conv.weight_g"


@pytest.fixture(scope="module")
def goldens(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("shared") / "goldens"


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Iterator[Any]:
    with np.load(goldens / "dev" / "audio.npz") as file:
        yield {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def samples(golden: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(golden["samples"].astype(np.float32) / 32768)


def made_by_formula(kind: Kind, goldens: Path, folder: Path) -> Audio2Mesh | Audio2Pose:
    file = folder / f"{kind}.pt"
    torch.save(golden_state(file.name, golden_shapes(goldens, kind)), file)
    model, report = load_published(kind, file)
    file.unlink()  # half a gigabyte
    assert report.complete
    return model


@pytest.fixture(scope="module")
def mesh_model(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Audio2Mesh:
    model = made_by_formula("audio2mesh", goldens, tmp_path_factory.mktemp("mesh"))
    assert isinstance(model, Audio2Mesh)
    return model


@pytest.fixture(scope="module")
def pose_model(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Audio2Pose:
    model = made_by_formula("audio2pose", goldens, tmp_path_factory.mktemp("pose"))
    assert isinstance(model, Audio2Pose)
    return model


def relative_error(found: torch.Tensor, want: np.ndarray) -> float:
    wanted = want.astype(np.float64)
    return float(np.linalg.norm(found.double().numpy().reshape(want.shape) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("kind", ["audio2mesh", "audio2pose"])
def test_the_formula_gives_the_stated_weights(goldens: Path, kind: str) -> None:
    with np.load(goldens / "weights_check.npz") as check:
        sums, corners = check[f"{kind}.sum_sumsq"], check[f"{kind}.first_mid_last"]
    for row, (key, tensor) in enumerate(golden_state(f"{kind}.pt", golden_shapes(goldens, kind)).items()):
        flat = tensor.flatten().numpy()
        at = [0, flat.size // 2, flat.size - 1]
        loose = 4e-5 if key.endswith(".pe") else 0
        np.testing.assert_allclose(flat[at], corners[row], rtol=0, atol=loose)
        wide = flat.astype(np.float64)
        np.testing.assert_allclose([wide.sum(), np.square(wide).sum()], sums[row], rtol=1e-9 if not loose else 1e-4)


def test_normalised_speech(golden: dict[str, np.ndarray], samples: torch.Tensor) -> None:
    short = normalise(samples[: int(golden["short_samples"])])
    np.testing.assert_allclose(short[:64].numpy(), golden["short.normalised.first64"], rtol=0, atol=1e-6)


def test_audio2mesh(mesh_model: Audio2Mesh, golden: dict[str, np.ndarray], samples: torch.Tensor) -> None:
    seen: dict[str, Any] = {}
    names = sorted({name.split(".trace.")[1].rsplit(".", 1)[0] for name in golden if ".trace." in name})
    for name in names:
        module = mesh_model.get_submodule(name if name == "in_fn" else f"audio_encoder.{name}")
        module.register_forward_hook(lambda _module, _inputs, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        out = mesh_model(normalise(samples[: int(golden["short_samples"])])[None], int(golden["mesh.T"]))
    for name in names:  # in any order: the message names what differs
        found = seen[name][0] if isinstance(seen[name], tuple) else seen[name]
        assert tuple(found.shape) == tuple(golden[f"mesh.trace.{name}.shape"]), name
        picked = found.flatten()[golden[f"mesh.trace.{name}.index"]]
        assert relative_error(picked, golden[f"mesh.trace.{name}.samples"]) < 1e-4, name
    assert out.shape == (1, 180, 468, 3)
    assert relative_error(out[0], golden["mesh.out"]) < 1e-4


def test_audio2pose_cached_and_in_one_pass(
    pose_model: Audio2Pose, golden: dict[str, np.ndarray], samples: torch.Tensor
) -> None:
    identity, want = int(golden["pose.identity"]), golden["pose.out"]
    short = normalise(samples[: int(golden["short_samples"])])[None]
    with torch.no_grad():
        memory = pose_model.encode(short, int(golden["pose.T"]))
        poses, _ = decode(pose_model, memory, identity)
        previous = torch.from_numpy(np.concatenate([np.zeros((1, 6), np.float32), want[:-1]]))[None]
        known = pose_model.decode_known(memory, previous, torch.tensor([identity]))
    assert relative_error(poses[0], want) < 2e-4
    assert relative_error(known[0], want) < 2e-4


def test_long_speech_as_published(pose_model: Audio2Pose, golden: dict[str, np.ndarray], samples: torch.Tensor) -> None:
    raw = generate(pose_model, normalise(samples), int(golden["long.identity"]), chunking="restart")
    assert raw.shape == golden["long.raw"].shape
    assert relative_error(raw, golden["long.raw"]) < 2e-4
    assert relative_error(pose_model.finish(raw), golden["long.pose"]) < 2e-4


@pytest.fixture(scope="module")
def blank(goldens: Path) -> dict[str, torch.Tensor]:
    """A checkpoint of the right shapes that takes no space: every tensor repeats one number."""
    shapes = golden_shapes(goldens, "audio2mesh")
    return {key: torch.full((1,), 0.5).expand(shape) for key, shape in shapes.items()}


def test_half_precision_and_safetensors_load_too(blank: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({key: value[..., :1].half().expand(value.shape) for key, value in blank.items()}, tmp_path / "half.pt")
    model, report = load_published("audio2mesh", tmp_path / "half.pt")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert "missing: none" in str(report) and f"{len(blank)} tensors" in str(report)
    safetensors.torch.save_file({key: value.contiguous() for key, value in blank.items()}, tmp_path / "a.safetensors")
    again, _ = load_published("audio2mesh", tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_new_names_of_weight_norms_load_too(blank: dict[str, torch.Tensor], tmp_path: Path) -> None:
    renamed = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in blank.items()
    }
    assert renamed.keys() != blank.keys()
    torch.save(renamed, tmp_path / "new.pt")
    assert load_published("audio2mesh", tmp_path / "new.pt")[1].complete


def test_every_difference_is_named(blank: dict[str, torch.Tensor], tmp_path: Path) -> None:
    odd = dict(blank)
    del odd["audio_encoder.encoder" + G]
    odd["head.weight"] = torch.zeros(1)
    odd["in_fn.weight"] = torch.zeros(1).expand(511, 768)
    torch.save(odd, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="does not hold the weights of audio2mesh") as caught:
        load_published("audio2mesh", tmp_path / "odd.pt")
    text = str(caught.value)
    assert f"missing: 1 (audio_encoder.encoder{G})" in text
    assert "unexpected: 1 (head.weight)" in text
    assert "of another shape: 1 (in_fn.weight (511, 768) for (512, 768))" in text


def test_the_file_of_the_other_model_is_recognised(blank: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(blank, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="looks like the file of audio2mesh"):
        load_published("audio2pose", tmp_path / "mixed.pt")


def test_damaged_files_are_told_in_one_line(blank: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save(blank, whole)
    data = whole.read_bytes()
    contents = [data[: int(len(data) * share)] for share in (0.0, 0.01, 0.5, 0.99)] + [b"no weights at all"]
    for content in contents:
        cut.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.pt cannot be read as weights") as caught:
            load_published("audio2mesh", cut)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], cut)
    with pytest.raises(ValueError, match="no table of tensors"):
        load_published("audio2mesh", cut)
    with pytest.raises(ValueError, match="there is no file"):
        load_published("audio2mesh", tmp_path / "nowhere.pt")
