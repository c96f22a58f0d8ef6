"""What stored latents are: the forms of their arrays, and versions of releases before derived columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from talkinghead.column import decode_column, encode_column
from talkinghead.latents import (
    EMBEDDING,
    LATENT_FORMS,
    LATENTS,
    LOG_VARIANCE,
    MEAN,
    MOMENT_FORMS,
    encode_log_variance,
    latent_columns,
    latents_made_of,
    moments_of,
)

NETWORKS = {
    "vae": {"kind": "folder", "name": "sd-vae", "sha256": "a" * 64},
    "image_encoder": {"kind": "tiny", "name": "tiny", "sha256": "b" * 64},
}
DETAILS: dict[str, Any] = {"encoding": 1, "width": 64, "height": 32, **NETWORKS}


@pytest.mark.parametrize(("name", "shape"), [(LATENTS, (5, 8, 4, 6)), (MEAN, (5, 4, 4, 6)), (EMBEDDING, (5, 64))])
def test_half_precision_comes_back_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    form = next(form for form in (*MOMENT_FORMS, *LATENT_FORMS) if form.name == name)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    back = decode_column(form, encode_column(form, values))
    assert back.dtype == np.float16 and np.array_equal(back, values)


def test_every_code_means_a_number_of_half_precision_and_comes_back() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    moments = moments_of({MEAN: np.zeros(codes.shape, np.float16), LOG_VARIANCE: codes})
    values = moments[:, 4:]
    assert moments.dtype == np.float16 and moments.shape == (1, 8, 8, 8)
    np.testing.assert_array_equal(values.astype(np.float64).ravel(), -30 + 0.1875 * np.arange(256))
    np.testing.assert_array_equal(encode_log_variance(values), codes)
    assert encode_log_variance(np.array([-12.0], np.float16)) == 96, "the constant of CosineVae is exact"


def test_the_code_is_at_most_half_a_step_off() -> None:
    values = np.linspace(-30, 17.8, 20001).astype(np.float16)
    codes = encode_log_variance(values)
    assert codes.dtype == np.uint8
    assert np.abs(-30 + 0.1875 * codes - values.astype(np.float64)).max() <= 3 / 32


@pytest.mark.parametrize("value", [-30.2, 17.95, 20.0, np.nan, np.inf, -np.inf])
def test_what_no_code_means_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"stored are -30 … 17\.8"):
        encode_log_variance(np.array([-3.0, value], np.float16))


def test_moments_of_version_1_are_as_they_are_stored() -> None:
    values = np.random.default_rng(0).normal(size=(3, 8, 2, 2)).astype(np.float16)
    assert moments_of({LATENTS: values}) is values


def test_a_training_reads_the_arrays_that_there_are() -> None:
    assert latent_columns({form.name for form in MOMENT_FORMS}) == (LATENTS, EMBEDDING)
    assert latent_columns({form.name for form in LATENT_FORMS}) == (MEAN, LOG_VARIANCE, EMBEDDING)
    with pytest.raises(ValueError, match="run make latents again"):
        latent_columns({MEAN, EMBEDDING})


def test_details_of_former_releases_say_what_latents_were_made_of() -> None:
    """The name is the one that commit 730591f gave these latents."""
    made_of = latents_made_of(DETAILS)
    assert made_of.name == "latents-9f8395c8f867" and made_of.column == LATENTS and made_of.column_version == 1
    assert made_of.parameters == {"width": 64, "height": 32} and made_of.provenance == NETWORKS
    first = {name: value for name, value in DETAILS.items() if name != "encoding"}
    assert latents_made_of(first).is_same(made_of), "the first release did not note the encoding"
    assert not latents_made_of(DETAILS | {"encoding": 2}).is_same(made_of)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": None}, "the width of latents is None"),
        ({"height": 0}, "the height of latents is 0"),
        ({"height": "32"}, "the height of latents is '32'"),
        ({"width": True}, "the width of latents is True"),
        ({"vae": None}, "provenance"),
        ({"vae": {}}, "does not say which 'vae'"),
        ({"image_encoder": {"sha256": 3}}, "does not say which 'image_encoder'"),
        ({"encoding": "1"}, "column_version"),
    ],
)
def test_details_that_say_less_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        latents_made_of(DETAILS | change)
