"""Images to latents and tokens: equal for every caller, from weights that are never random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from talkinghead.models.image.cosine_vae import CosineVae
from talkinghead.models.image.networks import ImageNetworks, check_image_size, latent_channels, latent_scale
from talkinghead.models.image.weights import fingerprint, load_image_encoder, load_vae
from talkinghead.models.weights import parameter_hash
from talkinghead.provenance import canonical_json, hash_bytes

STOCK = "diffusion_pytorch_model.safetensors"


def images(number: int = 3, width: int = 64, height: int = 64) -> Tensor:
    rng = np.random.default_rng(number)
    rough = torch.from_numpy(rng.uniform(0, 255, (number, 3, 5, 5))).float()
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def encoder() -> ImageNetworks:
    return ImageNetworks.load("tiny-kl", "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline with both networks, whose weights differ from the named ones."""
    place = tmp_path_factory.mktemp("weights")
    vae, image_encoder = load_vae("tiny-kl"), load_image_encoder("tiny")
    torch.manual_seed(4)
    for network in (vae, image_encoder):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    vae.save_pretrained(place / "vae")
    image_encoder.save_pretrained(place / "image_encoder")
    return place


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path


def test_scale_and_channels() -> None:
    for name, scale, channels in (("tiny", 4, 16), ("tiny-kl", 8, 4)):
        vae = load_vae(name)
        assert (latent_scale(vae), latent_channels(vae)) == (scale, channels)
        moments = ImageNetworks.load(name, "tiny").moments(images(2, 64, 96))
        assert moments.shape == (2, 2 * channels, 96 // scale, 64 // scale) and moments.dtype == torch.float16
    assert ImageNetworks.load("tiny", "small").embedding(images(2)).shape == (2, 256)


def test_moments_are_those_of_the_stock_vae(encoder: ImageNetworks) -> None:
    given = images()
    with torch.no_grad():
        posterior = encoder.vae.encode(given / 127.5 - 1).latent_dist
    moments = encoder.moments(given)
    expected = torch.cat([posterior.mean, posterior.logvar], 1).half()
    assert torch.equal(moments, expected)
    scaling = encoder.vae.config["scaling_factor"]
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    drawn = (posterior.mean + posterior.std * noise) * scaling
    torch.testing.assert_close(encoder.sample(moments, noise), drawn, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(encoder.mean(moments), posterior.mean * scaling, atol=1e-3, rtol=1e-3)
    assert encoder.mean(moments).dtype == torch.float32


def test_decode_undoes_encode() -> None:
    encoder = ImageNetworks.load("tiny", "tiny")
    # Blocks of one colour, which the VAE keeps entirely: the only loss is rounding of latents to half precision.
    given = images(2, 16, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    decoded = encoder.decode(encoder.mean(encoder.moments(given)))
    assert decoded.shape == (2, 3, 32, 64) and decoded.dtype == torch.float32 and decoded.abs().max() <= 1
    assert ((decoded - (given / 127.5 - 1)) ** 2).mean() < 1e-6


def test_the_token_is_that_of_the_stock_processor(encoder: ImageNetworks) -> None:
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    # Fine noise, which a resize that skips pixels would show.
    given = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 120, 200), np.uint8))
    images = [image.numpy() for image in given]
    pixels: Any = processor(images, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    with torch.no_grad():
        expected = encoder.image_encoder(pixels).image_embeds
    found = encoder.embedding(given).float()
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_images_do_not_depend_on_their_neighbours_or_autocast(encoder: ImageNetworks) -> None:
    given = images(5)
    moments, tokens = encoder.moments(given), encoder.embedding(given)
    for number in range(5):
        torch.testing.assert_close(encoder.moments(given[number : number + 1])[0], moments[number])
        torch.testing.assert_close(encoder.embedding(given[number : number + 1])[0], tokens[number])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.moments(given), moments) and torch.equal(encoder.embedding(given), tokens)
        assert encoder.decode(encoder.mean(moments)).dtype == torch.float32


def test_it_is_frozen_and_no_module() -> None:
    encoder = ImageNetworks.load("tiny-kl", "tiny")
    assert not isinstance(encoder, torch.nn.Module)
    for network in (encoder.vae, encoder.image_encoder):
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert not encoder.moments(images()).requires_grad


def test_other_precision_keeps_the_provenance() -> None:
    encoder = ImageNetworks.load("tiny-kl", "tiny")
    before = encoder.moments(images())
    direct = ImageNetworks(load_vae("tiny-kl"), load_image_encoder("tiny"))
    for one in (encoder, direct):
        assert one.to("cpu", torch.bfloat16) is one
        assert one.vae.dtype == one.image_encoder.dtype == torch.bfloat16
        assert {name: about["sha256"] for name, about in one.provenance().items()} == {
            name: about["sha256"] for name, about in ImageNetworks.load("tiny-kl", "tiny").provenance().items()
        }
    after = encoder.moments(images())
    assert after.dtype == torch.float16 and 0 < (after - before).float().abs().mean() < 0.05


@pytest.mark.parametrize("given", [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)])
def test_other_images_are_refused(encoder: ImageNetworks, given: Tensor) -> None:
    for method in (encoder.moments, encoder.embedding):
        with pytest.raises(ValueError, match="uint8"):
            method(given)


def test_sizes_that_fit() -> None:
    tiny, stock = load_vae("tiny"), load_vae("tiny-kl")
    check_image_size(64, 96, tiny)
    check_image_size(520, 360, stock)
    check_image_size(60, 8, tiny)
    with pytest.raises(ValueError, match=r"500x512 .* multiples of 8; .* 496 or 504, the nearest height 512"):
        check_image_size(500, 512, stock)
    with pytest.raises(ValueError, match="nearest width is 4, "):
        check_image_size(0, 64, tiny)


def test_named_weights_are_the_same_whatever_the_global_generator() -> None:
    seen = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        encoder = ImageNetworks.load("tiny-kl", "small")
        assert torch.equal(torch.get_rng_state(), state)
        seen.add(parameter_hash(encoder.vae) + parameter_hash(encoder.image_encoder))
    assert len(seen) == 1


def test_folders_whole_or_by_part_have_one_provenance(folder: Path) -> None:
    whole = ImageNetworks.load(str(folder), str(folder))
    parts = ImageNetworks.load(str(folder / "vae"), str(folder / "image_encoder"))
    named = ImageNetworks.load("tiny-kl", "tiny")
    hashes = [{name: about["sha256"] for name, about in one.provenance().items()} for one in (whole, parts, named)]
    assert hashes[0] == hashes[1]
    assert hashes[0]["vae"] != hashes[2]["vae"] and hashes[0]["image_encoder"] != hashes[2]["image_encoder"]
    assert whole.provenance()["vae"]["kind"] == "folder" and named.provenance()["vae"]["kind"] == "tiny"
    assert torch.equal(whole.moments(images()), parts.moments(images()))


def test_the_cosine_vae_loads_from_a_pipeline_folder(copied: Path) -> None:
    CosineVae(patch=8).save_pretrained(copied / "vae")
    vae = load_vae(str(copied))
    assert isinstance(vae, CosineVae) and latent_scale(vae) == 8


def test_old_attention_names_of_published_vaes_are_understood(copied: Path) -> None:
    file = copied / "vae" / STOCK
    tensors = safetensors.torch.load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, published in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{published}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    safetensors.torch.save_file(renamed, file)
    assert parameter_hash(load_vae(str(copied))) == parameter_hash_of(tensors)


def parameter_hash_of(tensors: dict[str, Tensor]) -> str:
    vae = load_vae("tiny-kl")
    vae.load_state_dict(tensors)
    return parameter_hash(vae)


def test_settings_that_weights_do_not_show_change_the_hash(copied: Path) -> None:
    def hashes() -> list[str]:
        return [about["sha256"] for about in ImageNetworks.load(str(copied), str(copied)).provenance().values()]

    before = hashes()
    for part, setting, value in (("vae", "norm_num_groups", 4), ("image_encoder", "hidden_act", "gelu")):
        file = copied / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    assert not set(before) & set(hashes())
    file = copied / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"norm_num_groups": 8, "sample_size": 512}))
    assert hashes()[0] == before[0], "what changes nothing counts for nothing"


def broken_cases() -> list[tuple[str, str, Callable[[Path], object]]]:
    def edit(name: str, **changes: object) -> Callable[[Path], object]:
        def change(place: Path) -> None:
            file = place / name
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        return change

    def drop_tensor(name: str) -> Callable[[Path], object]:
        def change(place: Path) -> None:
            tensors = safetensors.torch.load_file(place / name)
            tensors.pop(sorted(tensors)[0])
            safetensors.torch.save_file(tensors, place / name, {"format": "pt"})

        return change

    def cut(name: str) -> Callable[[Path], object]:
        return lambda place: (place / name).write_bytes((place / name).read_bytes()[:1000])

    clip = "image_encoder/model.safetensors"
    return [
        ("vae", "cannot be read", lambda place: (place / "vae/config.json").unlink()),
        ("vae", "is not the JSON", lambda place: (place / "vae/config.json").write_text("{")),
        ("vae", "is not the JSON", lambda place: (place / "vae/config.json").write_text("[]")),
        ("vae", "'UNet2DConditionModel'", edit("vae/config.json", _class_name="UNet2DConditionModel")),
        ("vae", "no kind of network", edit("vae/config.json", _class_name=None)),
        ("vae", "weights in .* cannot be read", lambda place: (place / "vae" / STOCK).unlink()),
        ("vae", "weights in .* cannot be read", cut(f"vae/{STOCK}")),
        ("vae", "1 tensors missing", drop_tensor(f"vae/{STOCK}")),
        ("vae", "cannot be read|of another shape", edit("vae/config.json", latent_channels=8)),
        ("image_encoder", "'wav2vec2'", edit("image_encoder/config.json", model_type="wav2vec2")),
        ("image_encoder", "weights in .* cannot be read", cut(clip)),
        ("image_encoder", "weights in .* cannot be read", lambda place: (place / clip).unlink()),
        ("image_encoder", "1 tensors missing", drop_tensor(clip)),
        ("image_encoder", "of another shape", edit("image_encoder/config.json", projection_dim=32)),
    ]


@pytest.mark.parametrize(("part", "said", "change"), broken_cases())
def test_what_is_wrong_with_a_folder_is_said(
    copied: Path, part: str, said: str, change: Callable[[Path], object]
) -> None:
    change(copied)
    load: Any = load_vae if part == "vae" else load_image_encoder
    with pytest.raises(ValueError, match=said) as caught:
        load(str(copied))
    assert str(copied) in str(caught.value)


def test_missing_folders_say_what_is_wanted(tmp_path: Path) -> None:
    for load in (load_vae, load_image_encoder):
        with pytest.raises(ValueError, match=r"no folder '.*nowhere'.*'tiny'"):
            load(str(tmp_path / "nowhere"))
        with pytest.raises(ValueError, match=r"config\.json cannot be read"):
            load(str(tmp_path))


def test_the_hash_that_names_latents_has_not_changed() -> None:
    """Latents made before the tiny VAE's class got its present name are still those of this VAE."""
    vae = load_vae("tiny")
    hashed = {"class": "CosineCodec", "settings": {"patch": 4}, "tensors": parameter_hash(vae)}
    assert fingerprint(vae) == hash_bytes(canonical_json(hashed))
