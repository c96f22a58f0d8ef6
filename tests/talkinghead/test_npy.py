"""Arrays of strangers: plain numbers or an error, never an object, and no more memory than there are bytes."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from talkinghead.annotation import COLUMN
from talkinghead.column import decode_column
from talkinghead.npy import NPY_HEAD, npy_layout, read_npy


def stored(values: np.ndarray, **options) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, **options)
    return sink.getvalue()


def with_shape(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", "<i2", "<i8", "|u1", "|i1", "?"])
@pytest.mark.parametrize("shape", [(3,), (0,), (2, 3), (0, 4), (5, 478, 3), (1, 4, 4)])
def test_what_numpy_writes_is_read(kind: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    found = read_npy(stored(values))
    assert found.dtype == values.dtype and np.array_equal(found, values)


@pytest.mark.parametrize(
    "values",
    [
        np.array(0.0),
        np.zeros((2, 0)),
        np.asfortranarray(np.zeros((2, 3))),
        np.array(["text"]),
        np.zeros(2, complex),
        np.zeros(2, ">f4"),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "<f4")]),
        np.zeros(2, "V8"),
        np.array([{"an": "object"}]),
    ],
    ids=lambda values: f"{values.dtype} {values.shape}",
)
def test_what_no_column_holds_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"plain numbers|rows are empty"):
        read_npy(stored(values, allow_pickle=True))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(3, 99999999999, 99999999999)", "(-1,)", "(True,)", "(1e3,)"])
def test_a_header_cannot_ask_for_memory(shape: str) -> None:
    with pytest.raises(ValueError, match=r"its header says|plain numbers"):
        read_npy(with_shape(shape) + bytes(100))


def test_nothing_is_unpickled_or_unpacked(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    objects = stored(np.array([Payload()], dtype=object), allow_pickle=True)
    for data in (pickle.dumps(Payload()), objects, archive.getvalue(), b""):
        with pytest.raises(ValueError, match="plain numbers"):
            decode_column(COLUMN["pose"], data)
    assert not (tmp_path / "ran").exists()


def test_damaged_headers_are_errors_of_one_kind() -> None:
    whole = stored(np.zeros((4, 6), np.float32))
    rng = random.Random(0)
    for _ in range(3000):
        head = bytearray(whole[:NPY_HEAD])
        for _ in range(rng.randrange(1, 4)):
            head[rng.randrange(len(head))] = rng.choice(b"()[]{},:'0123456789-<>|OfiuV \n\x00\xff")
        try:
            layout = npy_layout(bytes(head))
        except ValueError:
            continue
        assert layout.dtype.kind in "biuf" and layout.row_bytes > 0 and layout.shape[0] >= 0
