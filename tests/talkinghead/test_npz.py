"""Files of arrays: the same bytes for the same content, and a stranger's file is read or refused in one line."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from talkinghead.npz import decode_npz, encode_npz, pack_texts, unpack_texts

ARRAYS = {
    "sums": np.arange(12, dtype=np.float64).reshape(3, 4),
    "empty": np.empty((0, 6), np.float32),
    "count": np.array([7]),
    "text": np.frombuffer("grüße".encode(), np.uint8),
    "seen": np.array([True, False]),
}
ABOUT = {"name": "speakers", "keys": ["a", "b"]}


def test_arrays_come_back_and_numpy_reads_them(tmp_path: Path) -> None:
    data = encode_npz(ARRAYS, ABOUT)
    found, about = decode_npz(data, "x.npz")
    assert about == ABOUT and found.keys() == ARRAYS.keys()
    (tmp_path / "x.npz").write_bytes(data)
    with np.load(tmp_path / "x.npz") as loaded:
        for name, values in ARRAYS.items():
            assert found[name].dtype == values.dtype and np.array_equal(found[name], values)
            assert np.array_equal(loaded[name], values)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_equal_content_gives_equal_bytes() -> None:
    """Whatever the order of the names, of the bytes in memory, and of the axes."""
    data = encode_npz(ARRAYS, ABOUT)
    other = {name: ARRAYS[name] for name in reversed(ARRAYS)}
    other["sums"] = np.asfortranarray(other["sums"].astype(">f8"))
    assert encode_npz(other, dict(reversed(ABOUT.items()))) == data
    assert encode_npz(ARRAYS | {"count": np.array([8])}, ABOUT) != data


def made(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return packed.getvalue()


def npy(values: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=True)
    return sink.getvalue()


JSON = ("about.json", b"{}")
GOOD = npy(np.zeros(3))
TWICE = made([("a.npy", GOOD)]).partition(b"PK\x01\x02")[0] + made([("a.npy", GOOD), JSON])
LYING = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 1 << 30, 1 << 30, 10, 0) + b"about.json{}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early"),
        (b"PK", "ends too early"),
        (b"no zip at all" * 10, "another form"),
        (made([("a.npy", GOOD)]), "no JSON|Expecting value"),
        (made([("a.npy", GOOD), JSON], zipfile.ZIP_DEFLATED), "another form"),
        (TWICE, "twice"),
        (made([("../a.npy", GOOD), JSON]), "it holds '../a.npy'"),
        (made([("a.txt", GOOD), JSON]), "it holds 'a.txt'"),
        (made([("a.npy", npy(np.array([{"an": "object"}]))), JSON]), "does not begin like"),
        (made([("a.npy", npy(np.array(1.0))), JSON]), "does not begin like"),
        (made([("a.npy", GOOD[:-1]), JSON]), "its header says"),
        (made([("a.npy", GOOD), ("about.json", b"[" * 100_000)]), "recursion|JSON"),
        (made([(f"a{number}.npy", GOOD) for number in range(2000)]), "too much"),
        (LYING, "about.json ends too early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_one_line(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.npz is no file of arrays of ours: .*({said})") as error:
        decode_npz(data, "x.npz")
    assert "\n" not in str(error.value)


def test_damaged_files_are_read_or_refused() -> None:
    data = encode_npz(ARRAYS, ABOUT)
    draws = random.Random(0)
    for _ in range(2000):
        broken = bytearray(data[: draws.randrange(len(data))] if draws.random() < 0.3 else data)
        for _ in range(draws.randrange(1, 4)):
            if broken:
                broken[draws.randrange(len(broken))] = draws.randrange(256)
        try:
            decode_npz(bytes(broken), "x.npz")
        except ValueError as error:
            assert str(error).startswith("x.npz is no file of arrays of ours: ")


def test_texts_come_back() -> None:
    for texts in ([], [""], ["a", "", "grüße", "日本"]):
        found, _ = decode_npz(encode_npz(pack_texts("name", texts), {}), "x.npz")
        assert unpack_texts("name", found) == texts


@pytest.mark.parametrize(
    "change",
    [
        {"name_length": np.array([1, 1])},
        {"name_length": np.array([-1, 4])},
        {"name_length": np.array([2**62, 2**62, 3])},
        {"name_length": np.array([[1, 2]])},
        {"name_length": np.array([1.0, 2.0])},
        {"name_utf8": np.array([97, 98, 255], np.uint8)},
        {"name_utf8": np.array([97, 98, 99])},
    ],
)
def test_texts_of_strangers_are_one_line(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"name|decode"):
        unpack_texts("name", pack_texts("name", ["a", "bc"]) | change)


def test_texts_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="it lacks the texts other"):
        unpack_texts("other", pack_texts("name", ["a"]))
