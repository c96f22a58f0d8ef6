"""Latents: the same bytes and names as before derived columns, and what cannot be encoded ends in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotate import latents
from annotate.latents import LATENTS, LatentSettings
from talkinghead.column import decode_column
from talkinghead.derived import ColumnError, Derived, derived_members, version_of
from talkinghead.media.image_size import fit_images
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.image.weights import IMAGE_ENCODERS, VAES, fingerprint, load_vae
from talkinghead.provenance import hash_bytes, provenance_key

SETTINGS = LatentSettings(vae="tiny", image_encoder="tiny", width=64, height=32)
JOB = {"encode_key": "0123456789abcdef", "libraries": {"numpy": "2.0"}}
"""What the job adds to the json member."""


class Clip:
    """A sample of which the latents see only the video."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.images = np.random.default_rng(0).integers(0, 256, (num_frames, 40, 64, 3), np.uint8)

    def video(self) -> Iterator[np.ndarray]:
        yield from self.images


def made(clip: Clip, settings: LatentSettings = SETTINGS) -> Derived:
    return LATENTS.open(settings, {}, "cpu")(clip)  # type: ignore[arg-type]


def npy(values: np.ndarray) -> bytes:
    """The bytes that the latents job wrote from its first release on."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values, "<f2"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def test_names_and_bytes_are_those_of_the_releases_before_derived_columns() -> None:
    """Hashes computed with commit 730591f, from the same numbers."""
    networks = {
        "vae": {"kind": "folder", "name": "sd-vae", "sha256": "a" * 64},
        "image_encoder": {"kind": "tiny", "name": "tiny", "sha256": "b" * 64},
    }
    made_of = version_of(LATENTS, SETTINGS, networks, {}, {})
    assert made_of.name == "latents-9f8395c8f867" and made_of.parameters == {"width": 64, "height": 32}
    names = LATENTS.stored_names
    assert f"{names.job}v" == "encode-v" and names.failed == "encode_failed"
    key = provenance_key(
        names.provenance,
        LATENTS.version,
        parameters=made_of.parameters,
        inputs={"key": "k-1", "shard": "c" * 64},
        models={name: about["sha256"] for name, about in made_of.provenance.items()},
        libraries=dict.fromkeys(LATENTS.libraries, "1"),
    )
    assert key == "d732280afd0d32dd"
    arrays = {
        "latents": np.linspace(-3, 3, 48, dtype=np.float32).reshape(3, 4, 2, 2).astype(np.float16),
        "embedding": np.linspace(0, 1, 15, dtype=np.float32).reshape(3, 5).astype(np.float16),
    }
    about = {"width": 64, "height": 32, **networks, "scaling_factor": 0.18215}
    members = derived_members(LATENTS, Derived(arrays=arrays, about=about), 3, None, JOB)
    assert names.key_field in JOB
    assert {suffix: hash_bytes(content) for suffix, content in members.items()} == {
        "embedding.npy": "1e7eb9fa94653919d7ba6e7ebe47c26f176e2dfb0d37812f4d637fe7a19f5290",
        "latents.json": "1c93dcd9f251239403fd0a6d1df0d5041a534a3731a80735a3b5bdf9b7aaf96f",
        "latents.npy": "0b627400938c8cc2b9ce847c1621e46354dd55a6a7d57373f84f158019fc0ed1",
    }
    assert list(members) == sorted(members)


def test_a_clip_is_encoded_as_training_would_encode_it() -> None:
    clip = Clip(5)
    members = derived_members(LATENTS, made(clip), 5, None, JOB)
    networks = ImageNetworks.load("tiny", "tiny")
    images = torch.from_numpy(fit_images(clip.images.transpose(0, 3, 1, 2), 64, 32))
    assert members["latents.npy"] == npy(networks.moments(images).numpy())
    assert members["embedding.npy"] == npy(networks.embedding(images).numpy())
    about = json.loads(members["latents.json"])
    scaling = networks.vae.config["scaling_factor"]
    assert about == JOB | {"width": 64, "height": 32, "scaling_factor": scaling, **networks.provenance()}
    loaded = decode_column(LATENTS.arrays[0], members["latents.npy"])
    assert loaded.dtype == np.float16, "as stored: training reads half precision"
    assert LATENTS.size_of_frame(SETTINGS) == (loaded[0].nbytes + len(members["embedding.npy"][128:]) // 5)


def test_provenance_checks_size_and_weights() -> None:
    assert LATENTS.provenance(SETTINGS) == ImageNetworks.load("tiny", "tiny").provenance()
    with pytest.raises(ValueError, match="multiples of 4"):
        LATENTS.provenance(replace(SETTINGS, width=42))
    with pytest.raises(ValueError, match="no folder 'nowhere'"):
        LATENTS.provenance(replace(SETTINGS, vae="nowhere"))
    with pytest.raises(ValueError, match="gpu_share"):
        replace(SETTINGS, gpu_share=2)


def test_a_worker_computes_with_the_weights_that_it_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not read twice, and never those of an earlier look at the same folder."""
    loads: list[Any] = []
    load = ImageNetworks.load
    monkeypatch.setattr(ImageNetworks, "load", lambda *names: loads.append(names) or load(*names))
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    load_vae("tiny-kl").save_pretrained(tmp_path / "vae")
    first = LATENTS.provenance(settings)
    LATENTS.size_of_frame(settings)
    encode = LATENTS.open(settings, {}, "cpu")
    assert len(loads) == 1
    clip: Any = Clip(2)
    before = encode(clip)
    assert before.about["vae"] == first["vae"]
    # Other weights in the same place: seen when asked again, while what is open stays as it is.
    vae = load_vae("tiny-kl")
    torch.nn.init.ones_(next(vae.parameters()))
    vae.save_pretrained(tmp_path / "vae")
    assert LATENTS.provenance(settings)["vae"]["sha256"] != first["vae"]["sha256"]
    torch.nn.init.zeros_(next(vae.parameters()))
    vae.save_pretrained(tmp_path / "vae")
    third = LATENTS.provenance(settings)["vae"]["sha256"]
    after = LATENTS.open(settings, {}, "cpu")(clip)
    assert len(loads) == 3 and after.about["vae"]["sha256"] == third == fingerprint(vae)
    assert not np.array_equal(before.arrays["latents"], after.arrays["latents"])
    assert np.array_equal(before.arrays["latents"], encode(clip).arrays["latents"])


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    for value, cause in ((1e6, "range"), (float("nan"), "nan")):
        vae: Any = load_vae("tiny-kl")
        with torch.no_grad():
            vae.quant_conv.bias.fill_(value)
        vae.save_pretrained(tmp_path / "vae")
        with pytest.raises(ColumnError, match="latents are not finite in half precision") as caught:
            made(Clip(2), replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64))
        assert caught.value.cause == cause


def test_a_clip_without_frames_and_one_that_needs_too_much_memory() -> None:
    with pytest.raises(ColumnError, match="no frames"):
        made(Clip(0))

    class Starved(ImageNetworks):
        def moments(self, images: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 60, device=images.device)  # PyTorch's own error

    networks = ImageNetworks.load("tiny", "tiny")
    with pytest.raises(MemoryError, match="encoding 2 images of 64x32 needs more memory"):
        latents.encode_frames(Starved(networks.vae, networks.image_encoder), Clip(2).video(), 64, 32)


def test_the_built_in_networks_are_those_that_load() -> None:
    assert set(LATENTS.built_in) == {*VAES, *IMAGE_ENCODERS}


def test_a_frame_gets_time_for_its_size() -> None:
    assert LATENTS.frame_seconds(replace(SETTINGS, width=512, height=512)) == 60.5
    assert LATENTS.frame_seconds(replace(SETTINGS, width=256, height=256)) == 15.5
