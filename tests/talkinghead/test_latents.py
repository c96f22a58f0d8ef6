"""What stored latents are: the forms of their arrays, and versions of releases before derived columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from talkinghead.column import decode_column, encode_column
from talkinghead.latents import (
    EMBEDDING,
    HEAD_BYTES,
    LATENTS,
    MOMENT_FORMS,
    ROW_FORMS,
    ROWS,
    LatentRows,
    encode_log_variance,
    latent_columns,
    latents_made_of,
    unpack_rows,
)

NETWORKS = {
    "vae": {"kind": "folder", "name": "sd-vae", "sha256": "a" * 64},
    "image_encoder": {"kind": "tiny", "name": "tiny", "sha256": "b" * 64},
}
DETAILS: dict[str, Any] = {"encoding": 1, "width": 64, "height": 32, **NETWORKS}


def some_rows(count: int, shape: tuple[int, int, int]) -> LatentRows:
    """Rows of a clip of 1920 x 1080 pixels, `shape` (C, h, w), with embeddings of 10 numbers."""
    rng = np.random.default_rng(0)
    return LatentRows(
        mean=rng.normal(size=(count, *shape)).astype(np.float16),
        log_variance=rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        embedding=rng.normal(size=(count, 10)).astype(np.float16),
        clip_size=(1920, 1080),
    )


@pytest.mark.parametrize(("name", "shape"), [(LATENTS, (5, 8, 4, 6)), (EMBEDDING, (5, 64))])
def test_half_precision_comes_back_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    form = next(form for form in MOMENT_FORMS if form.name == name)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    back = decode_column(form, encode_column(form, values))
    assert back.dtype == np.float16 and np.array_equal(back, values)


def test_every_code_means_a_number_of_half_precision_and_comes_back() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    moments = replace(some_rows(1, (4, 8, 8)), log_variance=codes).moments()
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


def test_rows_come_back_to_the_bit_whichever_are_read() -> None:
    rows = some_rows(7, (4, 6, 3))
    packed = rows.pack()
    assert packed.shape == (7, HEAD_BYTES + 3 * 4 * 6 * 3 + 2 * 10) and packed.dtype == np.uint8
    assert np.array_equal(decode_column(ROW_FORMS[0], encode_column(ROW_FORMS[0], packed)), packed)
    for part in (slice(None), slice(2, 3), slice(1, 7, 2)):
        back = unpack_rows(packed[part])
        assert back.clip_size == (1920, 1080)
        for name in ("mean", "log_variance", "embedding"):
            values, expected = getattr(back, name), getattr(rows, name)[part]
            assert values.dtype == expected.dtype and np.array_equal(values, expected)
    assert np.array_equal(back.moments()[:, :4], rows.mean[1::2])


def test_rows_are_laid_out_as_the_page_says() -> None:
    rows = some_rows(1, (2, 1, 1))
    head = np.array([2, 1, 1, 10, 1920, 1080, 0, 0], "<u2").tobytes()
    parts = rows.mean.tobytes(), rows.log_variance.tobytes(), rows.embedding.tobytes()
    assert rows.pack().tobytes() == b"".join([head, *parts])


@pytest.mark.parametrize("damage", [lambda rows: rows * 0, lambda rows: rows[:, :-2], lambda rows: rows[:, :9]])
def test_damaged_rows_are_noticed(damage: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ValueError, match="rows of latents"):
        unpack_rows(damage(some_rows(3, (4, 2, 2)).pack()))


def test_rows_of_different_clips_are_noticed() -> None:
    one = some_rows(2, (4, 2, 2))
    other = replace(one, clip_size=(64, 48))
    with pytest.raises(ValueError, match="rows of latents"):
        unpack_rows(np.concatenate([one.pack(), other.pack()]))


def test_a_clip_that_is_too_wide_for_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="clip of 70000 x 8 pixels: a row tells numbers up to 65535"):
        replace(some_rows(1, (4, 2, 2)), clip_size=(70_000, 8)).pack()


def test_a_training_reads_the_arrays_that_there_are() -> None:
    assert latent_columns({form.name for form in MOMENT_FORMS}) == (LATENTS, EMBEDDING)
    assert latent_columns({form.name for form in ROW_FORMS}) == (ROWS,)
    with pytest.raises(ValueError, match="run make latents again"):
        latent_columns({LATENTS})


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
