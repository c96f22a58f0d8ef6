"""Requests are defined once: their fields are the pipeline's arguments, described in the request's class."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from typing import Any

import numpy as np
import pytest

from talkinghead.pipelines.lmk2video import clip_request
from talkinghead.pipelines.lmk2video.clip_request import ClipRequest, VideoRequest
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_request


@pytest.mark.parametrize(
    ("method", "request_class"),
    [(TalkingHeadPipeline.stream, ClipRequest), (TalkingHeadPipeline.__call__, VideoRequest)],
)
def test_arguments_are_the_fields(method: Any, request_class: Any) -> None:
    """Signatures that `help` shows have the fields too; portrait and landmarks are positional."""
    owner, *arguments = inspect.signature(method).parameters.values()
    fields = dataclasses.fields(request_class)
    assert owner.name == "self" and [argument.name for argument in arguments] == [field.name for field in fields]
    for argument, field in zip(arguments, fields, strict=True):
        wanted = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert argument.default == wanted
    named = [argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]
    assert named == [field.name for field in fields][2:]


def test_every_field_is_described() -> None:
    tree = ast.parse(inspect.getsource(clip_request))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            lines = [line for line in node.body if not (isinstance(line, ast.AnnAssign) and _name(line) == "_")]
            for line, after in itertools.pairwise(lines):
                if isinstance(line, ast.AnnAssign):
                    assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), _name(line)


def _name(line: ast.AnnAssign) -> str:
    return ast.unparse(line.target)


def test_what_is_no_field_is_refused() -> None:
    stream: Any = TalkingHeadPipeline.stream
    with pytest.raises(TypeError, match="steps"):
        stream(None, **tiny_request(1), steps=3)
    with pytest.raises(TypeError, match="landmarks"):
        stream(None, np.zeros((8, 8, 3), np.uint8))
