"""Latents: bytes and names of version 1 as ever, precision and device in the name of version 2, errors in one line."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from annotate import latents
from annotate.latents import LATENTS, LatentSettings
from talkinghead import latents as stored
from talkinghead.column import decode_column
from talkinghead.derived import ColumnError, Derived, DerivedColumn, derived_members, version_of
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.image_size import fit_images
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.image.weights import IMAGE_ENCODERS, VAES, fingerprint, load_vae
from talkinghead.provenance import hash_bytes, provenance_key

SETTINGS = LatentSettings(vae="tiny", image_encoder="tiny", width=64, height=32, device="cpu", images_per_call=4)
(VERSION_1,) = LATENTS.former
JOB = {"encode_key": "0123456789abcdef", "libraries": {"numpy": "2.0"}}
"""What the job adds to the json member."""


class Clip:
    """A sample of which the latents see only the video."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.images = np.random.default_rng(0).integers(0, 256, (num_frames, 40, 64, 3), np.uint8)

    @property
    def info(self) -> SimpleNamespace:
        """What of the clip's facts the latents look at."""
        return SimpleNamespace(width=self.images.shape[2], height=self.images.shape[1])

    def video(self) -> Iterator[np.ndarray]:
        yield from self.images


def made(clip: Clip, settings: LatentSettings = SETTINGS, column: DerivedColumn = LATENTS) -> Derived:
    return column.open(settings, {}, "cpu")(clip)  # type: ignore[arg-type]


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
    made_of = version_of(VERSION_1, SETTINGS, networks, {}, {})
    assert made_of.name == "latents-9f8395c8f867" and made_of.parameters == {"width": 64, "height": 32}
    names = VERSION_1.stored_names
    assert f"{names.job}v" == "encode-v" and names.failed == "encode_failed"
    key = provenance_key(
        names.provenance,
        VERSION_1.version,
        parameters=made_of.parameters,
        inputs={"key": "k-1", "shard": "c" * 64},
        models={name: about["sha256"] for name, about in made_of.provenance.items()},
        libraries=dict.fromkeys(VERSION_1.libraries, "1"),
    )
    assert key == "d732280afd0d32dd"
    arrays = {
        "latents": np.linspace(-3, 3, 48, dtype=np.float32).reshape(3, 4, 2, 2).astype(np.float16),
        "embedding": np.linspace(0, 1, 15, dtype=np.float32).reshape(3, 5).astype(np.float16),
    }
    about = {"width": 64, "height": 32, **networks, "scaling_factor": 0.18215}
    members = derived_members(VERSION_1, Derived(arrays=arrays, about=about), 3, None, JOB)
    assert names.key_field in JOB
    assert {suffix: hash_bytes(content) for suffix, content in members.items()} == {
        "embedding.npy": "1e7eb9fa94653919d7ba6e7ebe47c26f176e2dfb0d37812f4d637fe7a19f5290",
        "latents.json": "1c93dcd9f251239403fd0a6d1df0d5041a534a3731a80735a3b5bdf9b7aaf96f",
        "latents.npy": "0b627400938c8cc2b9ce847c1621e46354dd55a6a7d57373f84f158019fc0ed1",
    }
    assert list(members) == sorted(members)


def test_version_1_is_encoded_as_training_would_encode_it() -> None:
    clip = Clip(5)
    members = derived_members(VERSION_1, made(clip, column=VERSION_1), 5, None, JOB)
    networks = ImageNetworks.load("tiny", "tiny")
    images = torch.from_numpy(fit_images(clip.images.transpose(0, 3, 1, 2), 64, 32))
    assert members["latents.npy"] == npy(networks.moments(images).numpy())
    assert members["embedding.npy"] == npy(networks.embedding(images).numpy())
    about = json.loads(members["latents.json"])
    scaling = networks.vae.config["scaling_factor"]
    assert about == JOB | {"width": 64, "height": 32, "scaling_factor": scaling, **networks.provenance()}
    loaded = decode_column(VERSION_1.arrays[0], members["latents.npy"])
    assert loaded.dtype == np.float16, "as stored: training reads half precision"
    assert VERSION_1.size_of_frame(SETTINGS) == loaded[0].nbytes + len(members["embedding.npy"][128:]) // 5


def test_means_keep_their_bits_and_variances_come_within_what_is_stated(tmp_path: Path) -> None:
    """Of a VAE whose variances differ from place to place."""
    load_vae("tiny-kl").save_pretrained(tmp_path / "vae")
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    clip = Clip(5)
    members = derived_members(LATENTS, made(clip, settings), 5, None, JOB)
    networks = ImageNetworks.load(settings.vae, "tiny")
    images = torch.from_numpy(fit_images(clip.images.transpose(0, 3, 1, 2), 64, 64))
    moments = np.concatenate([networks.moments(part).numpy() for part in images.split(4)])
    embedding = np.concatenate([networks.embedding(part).numpy() for part in images.split(4)])
    packed = decode_column(LATENTS.arrays[0], members["latent_rows.npy"])
    rows = stored.unpack_rows(packed)
    assert np.array_equal(rows.mean, moments[:, :4]) and np.array_equal(rows.embedding, embedding)
    assert rows.clip_size == (64, 40)
    loaded = rows.moments()
    assert loaded.dtype == np.float16 and loaded.shape == moments.shape
    true, found = moments[:, 4:].astype(np.float64), loaded[:, 4:].astype(np.float64)
    assert true.std() > 0.1, "or nothing is shown"
    assert np.abs(found - true).max() <= 3 / 32
    assert np.abs(np.exp(found / 2) / np.exp(true / 2) - 1).max() <= 0.048
    assert LATENTS.size_of_frame(settings) == packed[0].nbytes
    about = json.loads(members["latents.json"])
    assert (about["precision"], about["device"], about["images_per_call"]) == ("fp32", "cpu", 4)


def test_what_is_drawn_is_as_far_off_as_stated() -> None:
    networks = ImageNetworks.load("tiny-kl", "tiny")
    rng = np.random.default_rng(1)
    mean = rng.normal(0, 5, (2, 4, 8, 8)).astype(np.float16)
    log_variance = rng.uniform(-30, 2, mean.shape).astype(np.float16)
    noise = torch.from_numpy(rng.standard_normal(mean.shape).astype(np.float32))
    exact = torch.from_numpy(np.concatenate([mean, log_variance], axis=1))
    code = stored.encode_log_variance(log_variance)
    nothing = np.zeros((2, 1), np.float16)
    rows = stored.LatentRows(mean=mean, log_variance=code, embedding=nothing, clip_size=(64, 64))
    coarse = torch.from_numpy(rows.moments())
    scale = networks.vae.config["scaling_factor"]
    off = (networks.sample(coarse, noise) - networks.sample(exact, noise)).abs() / scale
    deviation = torch.exp(torch.from_numpy(log_variance).float() / 2)
    assert bool((off <= 0.048 * deviation * noise.abs() + 1e-5).all())
    # Below that deviation the rounding of the mean in half precision is what counts.
    rounding = torch.from_numpy(mean).float().abs() / 2048
    narrow = deviation * noise.abs() < torch.from_numpy(mean).float().abs() / 98
    assert bool(narrow.any()) and bool((off <= rounding + 1e-5)[narrow].all())


def test_a_clip_has_the_same_bytes_whatever_was_encoded_before(tmp_path: Path) -> None:
    """Images of several clips never share a call, since their number in it may change the last bits, also on a CPU."""
    load_vae("tiny-kl").save_pretrained(tmp_path / "vae")
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    encode = LATENTS.open(settings, {}, "cpu")
    alone: Any = Clip(7)
    first = encode(alone).arrays
    for length in (1, 5, 4):
        other: Any = Clip(length)
        encode(other)
        again = encode(alone).arrays
        assert all(np.array_equal(values, again[name]) for name, values in first.items())
    # Calls of four: what the clip has beyond them does not change them.
    longer: Any = Clip(9)
    more = encode(longer).arrays
    images = longer.images[:4], alone.images[:4]
    same = np.array_equal(*images)
    assert all(np.array_equal(values[:4], more[name][:4]) for name, values in first.items()) == same


def test_precision_device_and_images_in_a_call_are_part_of_the_name() -> None:
    networks = LATENTS.provenance(SETTINGS)
    others = (
        {"precision": "bf16"},
        {"precision": "tf32", "device": "cuda"},
        {"device": "cuda"},
        {"images_per_call": 5},
    )
    names = {version_of(LATENTS, replace(SETTINGS, **other), networks, {}, {}).name for other in others}
    ours = version_of(LATENTS, SETTINGS, networks, {}, {})
    assert len({*names, ours.name}) == 5
    assert ours.parameters == {
        "width": 64, "height": 32, "precision": "fp32", "device": "cpu", "images_per_call": 4
    }  # fmt: skip
    assert version_of(LATENTS, replace(SETTINGS, gpu_share=0.5), networks, {}, {}).name == ours.name
    for settings, said in (
        ({"precision": "tf32"}, "only GPUs round to TF32"),
        ({"device": "cuda", "gpu_share": 0.0}, "needs a gpu_share"),
        ({"images_per_call": 33}, r"0 … 32"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SETTINGS, **settings)


def test_what_is_left_open_is_decided_once() -> None:
    open_ones = LatentSettings(vae="tiny", image_encoder="tiny", gpu_share=0.0)
    assert LATENTS.settled(open_ones) == replace(open_ones, device="cpu", images_per_call=4)
    assert LATENTS.settled(replace(open_ones, width=64, height=64)).images_per_call == 32
    assert LATENTS.settled(SETTINGS) == SETTINGS
    with pytest.raises(ValueError, match="only GPUs round to TF32"):
        LATENTS.settled(replace(open_ones, precision="tf32"))


@pytest.mark.parametrize(
    ("side", "precision", "images"), [(256, "fp32", 32), (512, "fp32", 19), (512, "bf16", 32), (4096, "fp32", 1)]
)
def test_images_of_stable_diffusions_width_in_a_call_of_a_gpu(side: int, precision: Any, images: int) -> None:
    """At 512: five tensors of 128 channels are 671 MB, 19 times of which are below 12 GiB."""
    networks = ImageNetworks.load("tiny-kl", "tiny")
    networks.vae.register_to_config(block_out_channels=(128, 256, 512, 512))
    settings = replace(SETTINGS, width=side, height=side, precision=precision)
    assert latents.images_that_fit(networks, settings, "cuda") == images


def test_bf16_rounds_and_single_precision_is_what_it_says(tmp_path: Path) -> None:
    """Whatever the process has set before: other settings of PyTorch must not get into a version's bytes."""
    load_vae("tiny-kl").save_pretrained(tmp_path / "vae")
    settings = replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64)
    exact = made(Clip(3), settings)
    torch.set_float32_matmul_precision("medium")
    try:
        again = made(Clip(3), settings)
        assert torch.get_float32_matmul_precision() == "medium", "set back"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(np.array_equal(exact.arrays[name], again.arrays[name]) for name in exact.arrays)
    rounded = made(Clip(3), replace(settings, precision="bf16"))
    assert rounded.about["vae"] == exact.about["vae"], "the weights are named as they were before rounding"
    one, other = (stored.unpack_rows(derived.arrays["latent_rows"]).mean for derived in (rounded, exact))
    difference = np.abs(one.astype(float) - other.astype(float))
    assert 0 < difference.max() < 0.05


def test_single_precision_turns_tf32_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, str, bool]] = []
    moments = ImageNetworks.moments

    def look(self: ImageNetworks, images: torch.Tensor) -> torch.Tensor:
        flags = (
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.deterministic,
        )
        seen.append(flags)
        return moments(self, images)

    monkeypatch.setattr(ImageNetworks, "moments", look)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    for settings, column in (
        (SETTINGS, LATENTS),
        (replace(SETTINGS, device="cuda", precision="tf32"), LATENTS),
        (SETTINGS, VERSION_1),
    ):
        made(Clip(1), settings, column)
    assert seen == [(False, "highest", True), (True, "high", True), (True, "highest", True)]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before


def test_an_error_of_the_video_is_what_it_was_and_leaves_no_thread() -> None:
    class Broken(Clip):
        def video(self) -> Iterator[np.ndarray]:
            yield from self.images
            raise UnreadableMediaError("undecodable", "k.mp4 is damaged")

    with pytest.raises(UnreadableMediaError, match="damaged"):
        made(Broken(9))
    assert "read ahead" not in {thread.name for thread in threading.enumerate()}


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
    settings = LATENTS.settled(settings)
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
    assert not np.array_equal(before.arrays["latent_rows"], after.arrays["latent_rows"])
    assert np.array_equal(before.arrays["latent_rows"], encode(clip).arrays["latent_rows"])


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    for value, cause in ((1e6, "range"), (float("nan"), "nan")):
        vae: Any = load_vae("tiny-kl")
        with torch.no_grad():
            vae.quant_conv.bias.fill_(value)
        vae.save_pretrained(tmp_path / "vae")
        with pytest.raises(ColumnError, match="latents are not finite in half precision") as caught:
            made(Clip(2), replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64))
        assert caught.value.cause == cause


def test_a_clip_too_large_for_a_row_is_no_fault_of_the_weights() -> None:
    class Huge(Clip):
        @property
        def info(self) -> SimpleNamespace:
            return SimpleNamespace(width=65_536, height=8)

        def video(self) -> Iterator[np.ndarray]:
            raise AssertionError("it is not decoded")

    with pytest.raises(ColumnError, match=r"the clip has 65536 x 8 pixels, .* 65535 a side .*smaller size") as caught:
        made(Huge(2))
    assert caught.value.cause == "shape" and "weights" not in str(caught.value)


def test_variances_beyond_the_code_are_a_fault_of_the_weights(tmp_path: Path) -> None:
    vae: Any = load_vae("tiny-kl")
    with torch.no_grad():
        vae.quant_conv.bias.fill_(18.0)  # a log-variance above the largest code
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ColumnError, match=r"logarithms of the variance lie in .*these weights do not fit") as caught:
        made(Clip(2), replace(SETTINGS, vae=str(tmp_path / "vae"), width=64, height=64))
    assert caught.value.cause == "range"


def test_a_clip_without_frames_and_one_that_needs_too_much_memory() -> None:
    with pytest.raises(ColumnError, match="no frames"):
        made(Clip(0))

    class Starved(ImageNetworks):
        def moments(self, images: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 60, device=images.device)  # PyTorch's own error

    networks = ImageNetworks.load("tiny", "tiny")
    with pytest.raises(MemoryError, match="encoding 2 images of 64x32 needs more memory"):
        latents.encode_frames(Starved(networks.vae, networks.image_encoder), Clip(2).video(), 64, 32, 4)


def test_the_built_in_networks_are_those_that_load() -> None:
    assert set(LATENTS.built_in) == {*VAES, *IMAGE_ENCODERS}


def test_a_frame_gets_time_for_its_size() -> None:
    assert LATENTS.frame_seconds(replace(SETTINGS, width=512, height=512)) == 60.5
    assert LATENTS.frame_seconds(replace(SETTINGS, width=256, height=256)) == 15.5
