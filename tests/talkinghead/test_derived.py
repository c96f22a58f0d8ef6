"""What columns declare and make: names of versions, members of shards, and a cause for each kind of fault."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.column import Column, decode_column
from talkinghead.config import from_json
from talkinghead.derived import (
    ColumnError,
    ColumnVersion,
    Derived,
    DerivedColumn,
    blank_arrays_of,
    derived_members,
    label_code,
    version_of,
)
from talkinghead.provenance import pretty_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a column that does not exist."""

    weights: str = "tiny"
    """Weights."""
    size: int = 2
    """Size."""
    kinds: tuple[str, ...] = ("b", "a")
    """Kinds."""
    gpu_share: float = 0.5
    """Share of a GPU."""


ENERGY = DerivedColumn(
    name="energy",
    version=3,
    arrays=(
        Column("level", (2,), "dB", np.dtype("<i2"), 0.25),
        Column("spectrum", (None,), "x", np.dtype("<f2"), rows=2),
        Column("loud", (), "0 or 1", np.dtype("i1"), blank=-1),
        Column("total", (1,), "x", np.dtype("<f4"), rows="clip", optional=True),
    ),
    scores=("loudness",),
    needs=("wav", "valid"),
    settings=Settings,
    provenance=lambda settings: {"weights": {"name": settings.weights, "sha256": "a" * 64}},
    open=lambda settings, fits, device: lambda sample: Derived(),
    resources=("gpu_share",),
)
FRAMES = 4
VALID = np.array([True, False, True, True])


def derived(**changes: Any) -> Derived:
    """A right result for four frames, the second without a face; `changes` to its arrays."""
    seen = VALID.astype(float)
    arrays: dict[str, Any] = {
        "level": np.where(VALID[:, None], np.arange(8.0).reshape(4, 2), np.nan),
        "spectrum": np.where(np.repeat(VALID, 2)[:, None], np.ones((8, 3)), np.nan),
        "loud": np.where(VALID, seen, -1).astype(np.int64),
        "total": np.array([[7.5]]),
    }
    return Derived(arrays=arrays | changes, scores={"loudness": 0.5}, about={"unit": "dB"})


def members(made: Derived, valid: np.ndarray | None = VALID) -> dict[str, bytes]:
    return derived_members(ENERGY, made, FRAMES, valid, {"derive_key": "k"})


def test_what_a_column_makes_comes_back() -> None:
    stored = members(derived())
    assert list(stored) == ["energy.json", "level.npy", "loud.npy", "spectrum.npy", "total.npy"]
    assert json.loads(stored["energy.json"]) == {"derive_key": "k", "unit": "dB"}
    for array in ENERGY.arrays:
        np.testing.assert_array_equal(decode_column(array, stored[array.member]), derived().arrays[array.name])


def test_a_clip_whose_frames_all_have_a_face_and_one_without_any() -> None:
    full = derived(level=np.ones((4, 2)), spectrum=np.ones((8, 3)), loud=np.ones(4, int))
    assert members(full, np.ones(4, bool)) and members(full, None)
    blank = blank_arrays_of(ENERGY, 4, {"spectrum": (3,)})
    nothing = members(replace(derived(), arrays=blank), np.zeros(4, bool))
    assert (decode_column(ENERGY.arrays[2], nothing["loud.npy"]) == -1).all()
    with pytest.raises(ValueError, match="the settings decide the shape of spectrum"):
        blank_arrays_of(ENERGY, 4)


NAN = float("nan")
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "another name": ({"loudness": np.ones(4)}, "names", "made the arrays"),
    "too few rows": ({"level": np.ones((3, 2))}, "shape", r"level has shape \[3, 2\], must be \[4, 2\]"),
    "one row a frame": ({"spectrum": np.ones((4, 3))}, "shape", r"spectrum .* must be \[8, \?\]"),
    "more axes": ({"level": np.ones((4, 2, 1))}, "shape", "level has shape"),
    "no axes": ({"total": np.float32(1.0)}, "shape", "total has shape"),
    "a row a frame for the clip": ({"total": np.ones((4, 1))}, "shape", r"must be \[1, 1\]"),
    "integers for floats": ({"level": np.ones((4, 2), int)}, "type", "level is int64"),
    "floats for integers": ({"loud": np.ones(4)}, "type", "loud is float64"),
    "texts": ({"loud": np.array(list("abcd"))}, "type", "loud is <U1"),
    "objects": ({"level": np.full((4, 2), None)}, "type", "level is object"),
    "complex numbers": ({"spectrum": np.ones((8, 3), complex)}, "type", "spectrum is complex128"),
    "NaN with a face": ({"level": np.where(VALID[:, None], [1, NAN], NAN)}, "nan", "no value in 3 places that have a"),
    "a blank with a face": (
        {"loud": np.array([1, -1, -1, 0])},
        "nan",
        "loud has no value in 1 places that have a face",
    ),
    "values without a face": ({"level": np.ones((4, 2))}, "face", "level has values in frames without a face"),
    "integers without a face": ({"loud": np.array([1, 0, 1, 0])}, "face", "loud has values in frames without a face"),
    "too large for steps": ({"level": np.where(VALID[:, None], [1, 9e9], NAN)}, "range", "level holds 9e"),
    "infinite steps": ({"level": np.where(VALID[:, None], [1, np.inf], NAN)}, "range", "level holds inf"),
    "too large for half": ({"spectrum": np.where(VALID.repeat(2)[:, None], np.full(3, 1e6), NAN)}, "range", "spectrum"),
    "too large for bytes": ({"loud": np.array([300, -1, 0, 0])}, "range", "loud holds numbers that int8 cannot hold"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("error")
def test_each_fault_of_an_array_has_a_cause(fault: str) -> None:
    changes, cause, said = FAULTS[fault]
    with pytest.raises(ColumnError, match=said) as caught:
        members(derived(**changes))
    assert caught.value.cause == cause and "\n" not in str(caught.value)


def test_a_missing_array_is_said() -> None:
    arrays = dict(derived().arrays)
    del arrays["total"]
    with pytest.raises(ColumnError, match="energy made the arrays level, loud, spectrum") as caught:
        members(replace(derived(), arrays=arrays))
    assert caught.value.cause == "names"


def test_without_faces_in_the_needs_every_row_counts() -> None:
    with pytest.raises(ColumnError, match=r"level has no value in 2 places$"):
        members(derived(), None)


@pytest.mark.parametrize(
    ("change", "cause", "said"),
    [
        ({"scores": {"noise": 1.0}}, "names", "the unknown score 'noise'"),
        ({"scores": {"loudness": "high"}}, "type", "the score loudness is 'high', no number"),
        ({"scores": {"loudness": np.ones(3)}}, "type", "the score loudness is .*, no number"),
        ({"scores": {"loudness": float("inf")}}, "range", "the score loudness is inf"),
        ({"labels": {"the mood": "x"}}, "names", "label 'the mood'"),
        ({"labels": {"mood": ""}}, "names", "the label mood must have 1 to 200"),
        ({"labels": {"mood": "a\nb"}}, "names", "the label mood must have 1 to 200"),
        ({"labels": {f"l{k}": "x" for k in range(65)}}, "names", "made 65 labels, may make 64"),
        ({"about": {"x": NAN}}, "type", "what energy says about itself is no JSON"),
        ({"about": {"x": np.ones(3)}}, "type", "what energy says about itself is no JSON"),
    ],
)
def test_scores_labels_and_notes_are_such_that_they_can_be_kept(change: dict[str, Any], cause: str, said: str) -> None:
    with pytest.raises(ColumnError, match=said) as caught:
        members(replace(derived(), **change))
    assert caught.value.cause == cause


@pytest.mark.parametrize("score", [None, NAN, 1, 0.5, np.float32(0.5), np.int64(3)])
def test_scores_may_be_unknown(score: Any) -> None:
    assert members(replace(derived(), scores={"loudness": score}))


def test_an_error_keeps_its_cause_on_its_way_between_processes() -> None:
    error = copy.copy(ColumnError("nan", "the level is NaN"))  # by `__reduce__`, as pickle does
    assert (error.cause, str(error)) == ("nan", "the level is NaN")


# --- versions ---------------------------------------------------------------------------------------------------------


def version(settings: Settings | None = None, **changes: Any) -> ColumnVersion:
    settings = settings or Settings()
    pins, fits = changes.pop("pins", {"annotation": "v1"}), changes.pop("fits", {})
    return version_of(replace(ENERGY, **changes), settings, ENERGY.provenance(settings), pins, fits)


def test_a_version_is_named_by_all_that_shapes_it_and_by_nothing_else() -> None:
    one = version()
    assert one.name.startswith("energy-") and len(one.name) == len("energy-") + 12
    assert one.parameters == {"size": 2, "kinds": ["b", "a"]}, "without weights and resources, as JSON"
    same = [version(Settings(weights="moved")), version(Settings(gpu_share=0.0))]
    assert {other.name for other in same} == {one.name} and all(one.is_same(other) for other in same)
    others = [
        version(Settings(size=3)),
        version(Settings(kinds=("a",))),
        version(version=4),
        version(pins={"annotation": "v2"}),
        version(fits={"basis": "b" * 64}),
        replace(one, provenance={"weights": {"sha256": "c" * 64}}),
    ]
    assert len({other.name for other in [one, *others]}) == 7
    assert not any(one.is_same(other) for other in others)


def test_a_version_comes_back_from_its_plan_as_the_same() -> None:
    """Also with tuples among the settings, which JSON does not have, and with fields in another order."""
    made_of = replace(version(), provenance={"weights": {"sha256": "a" * 64}, "basis": {"sha256": "b" * 64}})
    back = from_json(ColumnVersion, json.loads(pretty_json(asdict(made_of))))
    assert back == made_of and back.is_same(made_of) and back.name == made_of.name
    assert [Column.from_json(form) for form in back.arrays] == [replace(a, optional=False) for a in ENERGY.arrays]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column": "../x"}, "column"),
        ({"provenance": {"weights": {"name": "x"}}}, "does not say which 'weights'"),
        ({"provenance": {"weights": {"sha256": 5}}}, "does not say which 'weights'"),
        ({"provenance": {"weights": "x"}}, "must be"),
        ({"column_version": "1"}, "must be int"),
        ({"pins": {"annotation": 1}}, "must be str"),
        ({"later": 1}, "has no field"),
    ],
)
def test_a_version_of_a_strangers_file_is_checked(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(ColumnVersion, json.loads(json.dumps(asdict(version()) | change)))


@pytest.mark.parametrize("name", ["", "Energy", "energy-x", "energy_of_all_clips_", "1st", "annotation"])
def test_names_of_columns_fit_into_names_of_versions(name: str) -> None:
    with pytest.raises(ValueError, match="must be named with at most 18"):
        replace(ENERGY, name=name)


def test_sizes_and_names_in_data() -> None:
    assert ENERGY.size_of_frame(Settings()) == 2 * 2 + 1, "what is known: not the spectrum, nor what a clip takes once"
    assert replace(ENERGY, frame_bytes=lambda settings: 10.0 * settings.size).size_of_frame(Settings()) == 20
    names = ENERGY.stored_names
    assert (names.job, names.provenance, names.key_field) == ("derive-", "derive-energy", "derive_key")


# --- labels -----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_codes_of_labels_are_numbers_of_an_int32(text: str) -> None:
    assert 0 <= label_code(text) < 2**31 and np.int32(label_code(text)) == label_code(text)


def test_a_code_means_the_same_for_ever() -> None:
    """Weights are trained on them, and shards hold them. The numbers are those of sha256sum."""
    assert (label_code("happy"), label_code("neutral")) == (1218408860, 2116252404)
    emotions = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
    assert len({label_code(emotion) for emotion in emotions}) == 8
