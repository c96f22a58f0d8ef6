"""The table of derived columns and global fits: names that collide nowhere, needs that exist, settings that explain."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections import Counter

import pytest

from annotate.columns import COLUMNS, FITS
from annotate.scores import clip_scores, info_scores
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, blank_arrays
from talkinghead.derived import ANNOTATION, MEDIA_NEEDS
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
def test_settings_are_frozen_and_explain_every_field(owner: object) -> None:
    settings: type = owner.settings  # type: ignore[attr-defined]
    assert dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen  # type: ignore[attr-defined]
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
def test_resources_are_settings(column: object) -> None:
    resources = set(column.resources)  # type: ignore[attr-defined]
    assert resources <= {field.name for field in dataclasses.fields(column.settings)}  # type: ignore[attr-defined]


def test_importing_the_table_is_fast() -> None:
    heavy = "torch", "mediapipe", "cv2", "av", "ray", "diffusers", "transformers", "gradio", "scipy", "matplotlib"
    code = f"import sys, annotate.columns; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
