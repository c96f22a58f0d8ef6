"""Dataclasses come back from JSON as they went in, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from talkinghead.config import from_json, shown


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings in settings."""

    size: tuple[int, int] = (1, 2)
    kind: Literal["a", "b", 3] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One field of each kind."""

    name: str
    count: int
    rate: float = 1.5
    flag: bool = False
    maybe: int | None = None
    either: str | int = "x"
    inner: Inner = Inner()
    perhaps: Inner | None = None
    names: tuple[str, ...] = ()
    rows: list[Inner] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    by_name: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None
    place: Path | None = None


def test_round_trip() -> None:
    settings = Outer(
        name="n", count=3, rate=2, flag=True, maybe=4, either=5, inner=Inner(size=(3, 4), kind=3), perhaps=Inner(),
        names=("a", "b"), rows=[Inner(), Inner(kind="b")], times=[0.5, 1.5], by_name={"a": 1}, anything={"b": [None]},
    )  # fmt: skip
    assert from_json(Outer, json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    assert from_json(Outer, {"name": "n", "count": 1}) == Outer(name="n", count=1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Outer is [], must be an object"),
        ({}, "Outer lacks name, count"),
        ({"other": 1}, "Outer has no field 'other'"),
        ({"count": "1"}, "Outer.count is '1', must be int"),
        ({"count": True}, "Outer.count is True"),
        ({"count": 1.0}, "Outer.count is 1.0"),
        ({"count": 2**63}, "Outer.count is"),
        ({"rate": "fast"}, "must be float"),
        ({"rate": float("inf")}, "Outer.rate is inf"),
        ({"rate": 10**400}, "Outer.rate is 1000"),
        ({"times": [0.5, float("nan")]}, "Outer.times is nan"),
        ({"flag": 1}, "Outer.flag is 1"),
        ({"maybe": "x"}, "Outer.maybe is 'x', must be int"),
        ({"either": 1.5}, "must be str or int"),
        ({"inner": {"size": [1]}}, "Inner.size is [1]"),
        ({"inner": {"kind": "c"}}, "Inner.kind is 'c', must be 'a' or 'b' or 3"),
        ({"perhaps": {"size": None}}, "Inner.size is None"),
        ({"names": "ab"}, "Outer.names is 'ab'"),
        ({"rows": [{}, 5]}, "Inner is 5"),
        ({"rows": {}}, "Outer.rows is {}"),
        ({"by_name": {"a": "b"}}, "Outer.by_name is 'b'"),
        ({"by_name": None}, "Outer.by_name is None"),
    ],
)
def test_other_types_are_refused(value: Any, said: str) -> None:
    whole = {"name": "n", "count": 1}
    with pytest.raises(ValueError, match=re.escape(said)):
        from_json(Outer, whole | value if value else value)


def test_values_in_messages_are_short_and_printable() -> None:
    for value in (
        "a\nb\x1b[31m",
        "x" * 10**6,
        list(range(10**6)),
        {str(k): "y" * 1000 for k in range(10**4)},
        "\udcff",
    ):
        assert shown(value).isprintable() and len(shown(value)) < 1000
