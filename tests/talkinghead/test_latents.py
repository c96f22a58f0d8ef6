"""What stored latents are: the forms of their arrays, and versions of releases before derived columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from talkinghead.column import decode_column, encode_column
from talkinghead.latents import EMBEDDING, LATENT_FORMS, LATENTS, latents_made_of

NETWORKS = {
    "vae": {"kind": "folder", "name": "sd-vae", "sha256": "a" * 64},
    "image_encoder": {"kind": "tiny", "name": "tiny", "sha256": "b" * 64},
}
DETAILS: dict[str, Any] = {"encoding": 1, "width": 64, "height": 32, **NETWORKS}


@pytest.mark.parametrize(("name", "shape"), [(LATENTS, (5, 8, 4, 6)), (EMBEDDING, (5, 64))])
def test_half_precision_comes_back_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    [form] = [form for form in LATENT_FORMS if form.name == name]
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    back = decode_column(form, encode_column(form, values))
    assert back.dtype == np.float16 and np.array_equal(back, values)


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
