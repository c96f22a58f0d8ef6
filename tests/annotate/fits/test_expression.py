"""The fit of expressions: the basis of all clips at once, from sums of parts; and a data set without blendshapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from annotate.fits.expression import EXPRESSION, ExpressionSettings, read_basis
from annotate.fits.speakers import SPEAKERS
from shards.fits import merge_parts
from talkinghead.column import Arrays
from talkinghead.derived import Fit
from talkinghead.motion.expression import ExpressionFit
from talkinghead.npz import pack_texts
from tests.support.drawn_samples import DrawnSample, drawn


def speakers_fit(samples: Sequence[DrawnSample]) -> Fit:
    """Neutral meshes of all speakers but those without a face."""
    names = sorted({sample.speaker for sample in samples if sample.columns["valid"].any()})
    meshes = [np.full((468, 3), number, np.float32) for number in range(len(names))]
    return Fit(sha256="0" * 64, arrays={**pack_texts("speaker", names), "neutral_mesh": np.stack(meshes)})


def fitted(samples: Sequence[DrawnSample], count: int) -> Arrays:
    fits = {SPEAKERS.name: speakers_fit(samples)}
    parts = [EXPRESSION.partial(samples[first::count], ExpressionSettings(), fits, 0) for first in range(count)]
    sums = merge_parts(EXPRESSION, parts, 0)
    assert sums is not None
    return EXPRESSION.finish(sums, ExpressionSettings(), fits)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_give_the_basis_of_all_clips(count: int) -> None:
    samples = drawn()
    neutral = speakers_fit(samples).arrays["neutral_mesh"]
    names = sorted({sample.speaker for sample in samples if sample.columns["valid"].any()})
    expected = ExpressionFit()
    for sample in samples:
        if sample.speaker in names:
            mesh = neutral[names.index(sample.speaker)]
            expected.add(sample.columns["mesh"], mesh, sample.columns["blendshapes"])
    found = read_basis(Fit(sha256="", arrays=fitted(samples, count)))
    assert found is not None
    np.testing.assert_allclose(found.offsets, expected.basis().offsets, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.rest, expected.basis().rest, rtol=1e-6)


def test_without_blendshapes_the_fit_says_so() -> None:
    samples = [sample for sample in drawn() if not sample.scored]
    arrays = fitted(samples, 2)
    assert arrays.keys() == {"num_frames"} and read_basis(Fit(sha256="", arrays=arrays)) is None


def test_it_reads_the_clips_of_the_speakers() -> None:
    assert set(EXPRESSION.needs) == set(SPEAKERS.needs) and EXPRESSION.fits == (SPEAKERS.name,)


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": np.array([1.5])},
        {"num_frames": np.array([-1])},
        {"num_frames": np.array([1, 2])},
        {"offsets": np.zeros((2, 468, 3), np.float32)},
        {"offsets": np.zeros((53, 468, 3), np.int32)},
        {"rest": np.full(53, np.nan)},
    ],
)
def test_arrays_of_a_stranger_are_one_line(change: dict[str, np.ndarray]) -> None:
    arrays = {**fitted(drawn(), 1)}
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_basis(Fit(sha256="", arrays=arrays | change))
    for name in arrays:
        with pytest.raises(ValueError, match="is no fit of expressions"):
            read_basis(Fit(sha256="", arrays={key: value for key, value in arrays.items() if key != name}))
