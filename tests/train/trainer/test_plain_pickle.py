"""Pickles as plain data: all that PyTorch writes is read, nothing that a pickle names happens."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.foreign_checkpoints import Payload
from train.trainer.plain_pickle import Call, Name, Pairs, Reference, read_pickle

numbers = st.integers(-(2**31), 2**31 - 1) | st.integers(2**31, 2**200)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | numbers, inner),
    max_leaves=30,
)


def plain(value: Any) -> Any:
    """Value with dicts again, as `pickle` would give it."""
    if isinstance(value, Pairs):
        return {plain(key): plain(item) for key, item in value.items}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


@given(value=values, protocol=st.sampled_from([2, 4, 5]))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    found = read_pickle(pickle.dumps(value, protocol))
    assert plain(found) == value and type(plain(found)) is type(value)


class Example:
    """Class whose objects have a state."""

    def __init__(self, first: int) -> None:
        self.first = first


@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_and_names_stay_words(protocol: int, tmp_path: Path) -> None:
    shared = Example(3)
    first, second, payload = read_pickle(pickle.dumps([shared, shared, Payload(tmp_path / "owned")], protocol))
    assert first is second and isinstance(first, Call)
    assert first.target == Name(__name__, "Example") and str(first.target) == f"{__name__}.Example"
    assert first.arguments == () and first.state.items == [("first", 3)]
    assert payload.target == Name(os.mkdir.__module__, "mkdir") and payload.arguments == (str(tmp_path / "owned"),)
    assert not (tmp_path / "owned").exists()


def test_references_keep_what_they_say() -> None:
    found = read_pickle(b"\x80\x02X\x02\x00\x00\x00ab\x85Q.")
    assert isinstance(found, Reference) and found.value == ("ab",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"]",
        b"q",
        b"t.",
        b"(.",
        b"N\x85\x86.",
        b"h\x07.",
        b"}NNs]e.",
        b"Na.",
        b"NNNs.",
        b"}(Nu.",
        b"NNb.",
        b"]NNb.",
        b"NN\x93.",
        b"cos\n.",
        b"X\xff\xff\xff\x7fab.",
        b"\xff\xfe.",
        b"X\x01\x00\x00\x00\xff.",
    ],
)
def test_what_is_no_pickle_is_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_pickle(data)


def test_instructions_that_no_checkpoint_has_are_refused() -> None:
    for data, name in (
        (pickle.dumps(b"bytes", 4), "BINBYTES"),
        (pickle.dumps({1, 2}, 4), "EMPTY_SET"),
        (pickle.dumps(1.5, 4), "BINFLOAT"),
        (pickle.dumps(bytearray(3), 5), "BYTEARRAY8"),
        (b"cos\nsystem\n(S'x'\ntR.", "STRING"),
        (b"(S'x'\nios\nsystem\n.", "STRING"),
        (b"]2.", "DUP"),
    ):
        with pytest.raises(ValueError, match=f"the instruction \\w*{name}"):
            read_pickle(data)


def test_few_bytes_do_not_ask_for_much() -> None:
    """Each of these would take a real unpickler hours, or more memory than there is."""
    doubled = b"q\x00h\x00\x86" * 200
    found = read_pickle(b"\x80\x04}N" + doubled + b"Ns.")
    assert isinstance(found, Pairs), "the hash of this key has 2 ** 200 steps"
    assert read_pickle(b"\x80\x04Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86.") == (None, None), "a table of 2 ** 31"
    deep = read_pickle(b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".")
    assert isinstance(deep, list)
