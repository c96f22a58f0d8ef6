"""The table of derived columns and global fits: names that collide nowhere, needs that exist, settings that explain."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from annotate.columns import COLUMNS, FITS
from annotate.scores import clip_scores, info_scores
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, blank_arrays
from talkinghead.column import LARGEST, decode_column
from talkinghead.derived import ANNOTATION, MEDIA_NEEDS, DerivedColumn, derived_members
from talkinghead.global_fit import GlobalFit
from talkinghead.schema import ClipInfo, check_name
from tests.support.paths import ROOT
from tests.support.shard_data import media_contents


def annotation_scores() -> set[str]:
    """Names of the scores that the face annotation gives a clip."""
    info = ClipInfo.from_json(media_contents(0)["json"])
    return clip_scores(blank_arrays(3)).keys() | info_scores(info).keys() | {"face_source_px"}


def once(names: list[str]) -> bool:
    return max(Counter(names).values()) == 1


def test_columns_go_by_their_names() -> None:
    assert all(column.name == name for name, column in COLUMNS.items())
    assert all(fit.name == name for name, fit in FITS.items())
    assert {"latents", "mouth", "labels"} <= COLUMNS.keys() and {"speakers", "expression"} <= FITS.keys()


def test_no_name_means_two_things() -> None:
    """Readers find arrays, scores and members by their name alone."""
    arrays = [array.name for column in COLUMNS.values() for array in column.arrays]
    assert once([*arrays, *COLUMN])
    members = [array.member for column in COLUMNS.values() for array in column.arrays]
    assert once([*members, *(f"{name}.json" for name in COLUMNS), *ANNOTATION_MEMBERS, *MEDIA_NEEDS])
    assert once([score for column in COLUMNS.values() for score in column.scores] + sorted(annotation_scores()))
    assert not COLUMNS.keys() & {ANNOTATION, *COLUMN, *MEDIA_NEEDS}
    assert not COLUMNS.keys() & FITS.keys(), "options are named after both"
    for column in COLUMNS.values():
        for score in column.scores:
            check_name(score, "score")


def test_what_a_column_needs_exists_and_stands_before_it() -> None:
    before: set[str] = set()
    for column in COLUMNS.values():
        assert column.needs and once(list(column.needs)), column.name
        assert set(column.needs) <= {*MEDIA_NEEDS, *COLUMN, *before}, column.name
        assert set(column.fits) <= FITS.keys(), column.name
        before.add(column.name)


def test_what_a_fit_needs_exists_and_stands_before_it() -> None:
    before: set[str] = set()
    for fit in FITS.values():
        assert set(fit.needs) <= {*MEDIA_NEEDS, *COLUMN, *COLUMNS} and set(fit.fits) <= before, fit.name
        before.add(fit.name)


@pytest.mark.parametrize("owner", [*COLUMNS.values(), *FITS.values()], ids=lambda owner: owner.name)
def test_settings_are_frozen_and_explain_every_field(owner: Any) -> None:
    settings = owner.settings
    assert settings.__dataclass_params__.frozen
    assert settings.__doc__ and not settings.__doc__.startswith(f"{settings.__name__}("), "the help of the command"
    [body] = ast.parse(inspect.getsource(settings)).body
    assert isinstance(body, ast.ClassDef)
    explained = set()
    for statement, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
            explained.add(statement.target.id)
    assert explained == {field.name for field in dataclasses.fields(settings)}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=lambda column: column.name)
def test_resources_are_settings(column: DerivedColumn) -> None:
    assert set(column.resources) <= {field.name for field in dataclasses.fields(column.settings)}


def test_importing_the_table_is_fast() -> None:
    heavy = "torch", "mediapipe", "cv2", "av", "ray", "diffusers", "transformers", "gradio", "scipy", "matplotlib"
    code = f"import sys, annotate.columns; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what the documents say -------------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Function from a section of CONTRIBUTING to the names that its first Python file defines."""

    def run(heading: str) -> dict[str, Any]:
        section = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        code = section.split("```python\n")[1].split("```")[0]
        module = ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)  # where dataclasses look for the types of their fields
        exec(compile(code, heading, "exec", dont_inherit=True), module.__dict__)
        return module.__dict__

    return run


def test_the_column_of_contributing_works_as_it_is_written(example: Callable[[str], dict[str, Any]]) -> None:
    found = example("A derived column")
    column: DerivedColumn = found["SPEECH_LEVEL"]
    sound = np.zeros((10, 640), np.float32)
    sound[5:] = 0.5 * np.sin(np.arange(640) / 5)
    sample: Any = SimpleNamespace(num_frames=10, audio=sound.ravel)
    made = column.open(column.settings(), {}, "cpu")(sample)
    members = derived_members(column, made, 10, None, {})
    [form] = column.arrays
    loudness = decode_column(form, members["speech_level.npy"])
    np.testing.assert_allclose(loudness[:5], -100)
    np.testing.assert_allclose(loudness[5:], 10 * np.log10(0.125), atol=0.1)
    assert made.scores.keys() == set(column.scores) and made.scores["level_range_db"] == pytest.approx(91, abs=0.2)
    assert form.rounding(loudness).max() < 0.008 and -LARGEST * (form.step or 0) < -511
    with pytest.raises(ValueError, match="floor_db"):
        column.settings(floor_db=3.0)


def test_the_fit_of_contributing_works_as_it_is_written(example: Callable[[str], dict[str, Any]]) -> None:
    fit: GlobalFit = example("A global fit")["MEAN_MESH"]
    meshes = np.random.default_rng(0).normal(size=(6, 5, 468, 3)).astype(np.float32)
    valid = np.ones((6, 5), bool)
    valid[2, 3:], meshes[2, 3:] = False, np.nan
    samples: list[Any] = [
        SimpleNamespace(column={"mesh": mesh, "valid": seen}.__getitem__)
        for mesh, seen in zip(meshes, valid, strict=True)
    ]
    settings = fit.settings()
    parts = [fit.partial(samples[k : k + 2], settings, {}, 30) for k in (0, 2, 4)]
    whole = fit.finish(functools.reduce(lambda one, two: fit.merge(one, two, 30), parts), settings, {})
    np.testing.assert_allclose(whole["mesh"], meshes[valid].mean(axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="no training clip shows a face"):
        fit.finish(fit.partial([], settings, {}, 0), settings, {})


def test_the_page_about_columns_names_them_all() -> None:
    page = (ROOT / "docs" / "columns.md").read_text()
    for column in COLUMNS.values():
        for name in (column.name, *(array.name for array in column.arrays), *column.scores):
            assert f"`{name}`" in page, name
    assert all(f"`{name}`" in page for name in FITS)
