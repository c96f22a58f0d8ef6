"""Folders of networks that are a stranger's: they load as data, ask nobody for anything, and make nothing too large."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.image.cosine_vae import CosineVae
from talkinghead.models.image.weights import load_image_encoder, load_vae
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.sizes import denoiser_config
from talkinghead.models.speech.encoder import build_encoder
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import parameter_hash
from tests.support.limited_call import call_limited
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline

LOADERS: dict[str, Callable[[Path], Any]] = {
    "vae": lambda folder: load_vae(str(folder)),
    "image_encoder": lambda folder: load_image_encoder(str(folder)),
    "speech": lambda folder: Pretrained(str(folder))._folder_encoder(),
    "denoiser": Denoiser.from_pretrained,
    "audio2mesh": Audio2Mesh.from_pretrained,
}
KINDS = sorted(LOADERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network of each kind. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    load_vae("tiny-kl").save_pretrained(folder / "vae")
    load_image_encoder("tiny").save_pretrained(folder / "image_encoder")
    settings = Pretrained("tiny").wav2vec_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_encoder(settings).save_pretrained(folder / "speech")
        Denoiser(**denoiser_config("tiny", motion=False)).save_pretrained(folder / "denoiser")
        Audio2Mesh(wav2vec=settings, hidden=16).save_pretrained(folder / "audio2mesh")
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def change(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


CODE: dict[str, object] = {
    "auto_map": {"AutoModel": "sneaky.Model", "AutoConfig": "sneaky.Config"},
    "custom_pipelines": {"a": "sneaky"},
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "_attn_implementation": "kernels-community/flash-attn",
    "attn_implementation": {"": "someone/kernel:Attention"},
    "use_kernels": True,
}


@pytest.mark.parametrize("setting", sorted(CODE))
@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_ask_for_code_are_refused(copied: Path, kind: str, setting: str) -> None:
    change(copied / kind, **{setting: CODE[setting]})
    with pytest.raises(ValueError, match=rf"asks for .*\({setting}\)") as caught:
        LOADERS[kind](copied / kind)
    assert str(copied / kind) in str(caught.value) and "\n" not in str(caught.value)
    # Deeper down they are found, too.
    shutil.copy(copied / kind / "config.json", copied / "config.json")
    settings = json.loads((copied / "config.json").read_text())
    hostile = {setting: settings.pop(setting)}
    (copied / kind / "config.json").write_text(
        json.dumps(settings | {"wav2vec": settings.get("wav2vec", {}) | hostile})
    )
    with pytest.raises(ValueError, match="asks for"):
        LOADERS[kind](copied / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_next_to_weights_is_passed_over(made: Path, copied: Path, kind: str) -> None:
    """Adapters, a model that the settings are said to be from, modules, settings of generation, unknown settings."""
    folder = copied / kind
    change(folder, _name_or_path="https://example.org/model", task_specific_params={"a": 1}, _commit_hash="0" * 40)
    (folder / "sneaky.py").write_text("raise SystemExit('run')\n")
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": "someone/model",
        "auto_mapping": {"parent_library": "os"},
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "adapter_model.bin").write_bytes(b"no weights")
    (folder / "generation_config.json").write_text("{")
    (folder / "preprocessor_config.json").write_text('{"auto_map": {"AutoProcessor": "sneaky.P"}}')
    loaded = LOADERS[kind](folder)
    assert parameter_hash(loaded) == parameter_hash(LOADERS[kind](made / kind))
    loaded.save_pretrained(copied / "again")
    for file in (copied / "again").glob("*.json"):
        assert str(copied) not in file.read_text() and "example.org" not in file.read_text()


LOAD = """
import sys
from pathlib import Path
from tests.talkinghead.models.test_weights_foreign import LOADERS

for kind, load in LOADERS.items():
    load(Path(sys.argv[1]) / kind)
    for name in ("config.json", "weights"):
        try:
            load(Path(sys.argv[2]) / name / kind)
        except ValueError:
            continue
        raise AssertionError(f"{kind} loads without {name}")
"""


def test_nobody_is_asked_for_anything(copied: Path, made: Path, tmp_path: Path) -> None:
    """Whole folders, and those without settings or weights, which the libraries would look for on their hub."""
    lacking = tmp_path / "lacking"
    for name in ("config.json", "weights"):
        shutil.copytree(made, lacking / name)
        for file in (lacking / name).rglob("*"):
            if file.is_file() and (file.name == "config.json") == (name == "config.json"):
                file.unlink()
    for kind in KINDS:
        change(copied / kind, _name_or_path="someone/model", architectures=["SomeModel"])
    asked = 0

    def count() -> None:
        nonlocal asked
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return
            asked += 1

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=count, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_ENDPOINT")
        online = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, copied, lacking],
            cwd=ROOT,
            env=online | dict.fromkeys(names, url) | {"HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert asked == 0 and not (tmp_path / "hub").exists()


ABSURD: dict[str, list[dict[str, object]]] = {
    "vae": [
        {"block_out_channels": [10**9] * 4},
        {"layers_per_block": 10**6},
        {"latent_channels": 10**9},
        {"norm_num_groups": 0},
        {"down_block_types": ["os.system"] * 4},
    ],
    "image_encoder": [
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**6},
        {"image_size": 10**9, "patch_size": 1},
        {"hidden_act": "os.system"},
        {"hidden_size": "64"},
    ],
    "speech": [
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**6},
        {"conv_dim": [32] * 10**4, "conv_kernel": [3] * 10**4, "conv_stride": [2] * 10**4},
        {"conv_dim": [32] * 10**5, "conv_kernel": [3] * 10**5, "conv_stride": [2] * 10**5},
        {"intermediate_size": -1},
        {"conv_dim": "many"},
    ],
    "denoiser": [
        {"block_out_channels": [2**40] * 4},
        {"layers_per_block": 10**5},
        {"layers_per_block": 10**9},
        {"cross_attention_dim": None},
    ],
    "audio2mesh": [
        {"hidden": 10**12},
        {"num_vertices": 10**12},
        {"wav2vec": {"model_type": "wav2vec2", "num_hidden_layers": 10**6}},
        {"wav2vec": []},
        {"fps": "fast"},
    ],
}
LOAD_ABSURD = """
import json
from pathlib import Path
from tests.talkinghead.models.test_weights_foreign import ABSURD, LOADERS, change

def call(kind, folder):
    file, said = Path(folder) / "config.json", []
    settings = file.read_bytes()
    LOADERS[kind](Path(folder))
    for case in ABSURD[kind]:
        file.write_bytes(settings)
        change(Path(folder), **case)
        try:
            LOADERS[kind](Path(folder))
            said.append("it loads")
        except ValueError as error:
            said.append(str(error))
    return json.dumps(said)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_another_size_than_the_weights_are_refused(copied: Path, kind: str) -> None:
    """By what the files hold, before a byte is allocated and without making a million layers."""
    called = call_limited(LOAD_ABSURD, kind, copied / kind)
    texts = json.loads(called.said)
    for case, text in zip(ABSURD[kind], texts, strict=True):
        assert str(copied / kind) in text and "\n" not in text and len(text) < 2000, (case, text)
    assert called.memory < 200e6


def test_weights_of_one_number_do_not_become_gigabytes(copied: Path) -> None:
    """A file of a kilobyte with the shapes that absurd settings ask for."""
    folder = copied / "audio2mesh"
    change(folder, hidden=10**5, num_vertices=10**5)
    with torch.device("meta"):
        shapes = Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), hidden=10**5, num_vertices=10**5).state_dict()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(
        {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()},
        folder / "diffusion_pytorch_model.bin",
    )
    called = call_limited(
        "from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh\ncall = Audio2Mesh.from_pretrained", folder
    )
    assert "which it does not hold" in called.said and called.memory < 200e6


@pytest.mark.parametrize("patch", [33, 10**6, "4"])
def test_the_table_of_a_cosine_vae_has_a_limit(tmp_path: Path, patch: object) -> None:
    CosineVae().save_pretrained(tmp_path)
    change(tmp_path, patch=patch)
    with pytest.raises(ValueError, match="describes no CosineVae that can be made"):
        load_vae(str(tmp_path))


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ("denoiser", {"layers_per_block": 10**6}),
        ("reference_net", {"block_out_channels": [2**45] * 4}),
        ("image_encoder", {"num_hidden_layers": 10**6}),
        ("vae", {"patch": 10**9}),
        ("pose_guider", {"quantization_config": {"quant_method": "x"}}),
        ("pose_guider", {"stem_channels": "wide"}),
    ],
)
def test_networks_are_counted_by_settings_alone_up_to_a_limit(
    tmp_path: Path, network: str, settings: dict[str, object]
) -> None:
    """`infer doctor` and estimates make networks of a folder without weights."""
    tiny_pipeline().save_pretrained(tmp_path)
    assert HollowNetworks.of_folder(tmp_path).parameters()["denoiser"] > 0
    change(tmp_path / network, **settings)
    with pytest.raises(ValueError, match="does not describe a whole pipeline"):
        HollowNetworks.of_folder(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_are_no_file_or_too_long_are_refused(copied: Path, kind: str) -> None:
    file = copied / kind / "config.json"
    content = file.read_bytes()
    file.write_bytes(content + b" " * (1 << 20))
    with pytest.raises(ValueError, match="too large for a JSON file"):
        LOADERS[kind](copied / kind)
    file.write_text('{"a":' * 50_000)
    with pytest.raises(ValueError, match=r"nested too deeply|is no JSON"):
        LOADERS[kind](copied / kind)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="named pipe"):
        LOADERS[kind](copied / kind)
