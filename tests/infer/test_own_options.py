"""Options of other packages' drivers and renderers: read by the types of their dataclass, or refused in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.own_options import listed_options, own_options


@dataclass(frozen=True, kw_only=True)
class Settings:
    weights: Path
    strength: float = 1.0
    steps: int = 3
    quiet: bool = False
    way: Literal["up", "down"] = "up"
    shifts: tuple[float, ...] = field(default_factory=lambda: (0.0, 1.0))
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength:g}, must be at least 0")


class Kind:
    name = "kind"
    options = Settings


class Plain:
    name = "plain"


def read(*texts: str) -> Any:
    return own_options(Kind, texts, "--driver-option")


@given(strength=st.floats(0, 1e6), steps=st.integers(-9, 9), quiet=st.booleans(), way=st.sampled_from(["up", "down"]))
def test_what_is_written_comes_back(strength: float, steps: int, quiet: bool, way: str) -> None:
    texts = ("weights=a=b/c d", f"strength={strength!r}", f"steps={steps}", f"quiet={quiet}", f"way={way}")
    wanted = Settings(weights=Path("a=b/c d"), strength=strength, steps=steps, quiet=quiet, way=way)  # pyright: ignore[reportArgumentType]
    assert read(*texts) == read(*reversed(texts)) == wanted


def test_names_and_defaults() -> None:
    found = read("weights=w", "shifts=1;2.5", "limit=4")
    assert (found.shifts, found.limit, found.steps, found.quiet) == ((1.0, 2.5), 4.0, 3, False)
    assert own_options(Plain, (), "--driver-option") is None
    assert listed_options(Plain) == []
    listed = listed_options(Kind)
    assert listed[0] == "weights=Path (must be given)" and listed[1] == "strength=float (default: 1.0)"
    assert len(listed) == 7 and "(0.0, 1.0)" in listed[5]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("strength=2",), "kind needs --driver-option weights=VALUE"),
        (("weights=w", "colour=red"), "'colour=red', must be NAME=VALUE with one of weights, strength, steps"),
        (("weights=w", "quiet"), "'quiet', must be NAME=VALUE"),
        (("weights=w", "steps=2.5"), "--driver-option steps is '2.5', must be a whole number"),
        (("weights=w", "strength=nan"), "must be a finite number"),
        (("weights=w", "way=left"), "must be one of up, down"),
        (("weights=w", "steps=1", "steps=2"), "gives steps twice"),
        (("weights=w", "strength=-1"), "strength is -1, must be at least 0"),
    ],
)
def test_refused(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(*texts)
    with pytest.raises(ValueError, match="plain has no options, but there is --renderer-option x=1"):
        own_options(Plain, ("x=1",), "--renderer-option")
