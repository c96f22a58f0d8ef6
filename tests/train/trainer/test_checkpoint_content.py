"""Checkpoints of strangers: none runs code, reads another file, takes memory that the model does not need, or hangs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex

from tests.support.foreign_checkpoints import (
    METADATA,
    NAME,
    TENSORS,
    Payload,
    archive,
    change,
    load,
    put,
    put_tensor,
    seal,
    unpickled,
    whole_checkpoint,
)
from tests.support.paths import ROOT
from tests.support.training_states import assert_equal, blank, make, state_of
from train.trainer.checkpoint_files import TensorsOnly

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

REFUSED = r"^checkpoint .*step-00000001 (is damaged: [^\n]+|is of another model: [^\n]+; take another RUN)$"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return whole_checkpoint(tmp_path / "checkpoints")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "owned"


def refuse(checkpoint: Path, match: str = "") -> None:
    with pytest.raises(ValueError, match=REFUSED) as caught:
        load(checkpoint)
    assert match in str(caught.value) and len(str(caught.value)) < 1000


# --- nothing runs -----------------------------------------------------------------------------------------------------


def as_all(metadata: Any, payload: Payload) -> Any:
    return payload


def as_entry(metadata: Any, payload: Payload) -> Any:
    metadata.state_dict_metadata[NAME] = payload


def as_name(metadata: Any, payload: Payload) -> Any:
    metadata.state_dict_metadata[payload] = metadata.state_dict_metadata.pop(NAME)


def as_chunk(metadata: Any, payload: Payload) -> Any:
    metadata.state_dict_metadata[NAME].chunks[0] = payload


def as_size(metadata: Any, payload: Payload) -> Any:
    metadata.state_dict_metadata[NAME].size = payload


def as_dtype(metadata: Any, payload: Payload) -> Any:
    metadata.state_dict_metadata[NAME].properties.dtype = payload


def as_place(metadata: Any, payload: Payload) -> Any:
    metadata.storage_data[next(iter(metadata.storage_data))] = payload


def as_index(metadata: Any, payload: Payload) -> Any:
    metadata.storage_data[payload] = metadata.storage_data.popitem()[1]


def as_file(metadata: Any, payload: Payload) -> Any:
    next(iter(metadata.storage_data.values())).relative_path = payload


def as_transform(metadata: Any, payload: Payload) -> Any:
    next(iter(metadata.storage_data.values())).transform_descriptors = [payload]


def as_planner_data(metadata: Any, payload: Payload) -> Any:
    metadata.planner_data = {NAME: payload}


def as_storage_meta(metadata: Any, payload: Payload) -> Any:
    metadata.storage_meta = payload


def as_version(metadata: Any, payload: Payload) -> Any:
    metadata.version = payload


def as_another_attribute(metadata: Any, payload: Payload) -> Any:
    metadata.more = payload


REFUSED_PLACES = (
    as_all,
    as_entry,
    as_name,
    as_chunk,
    as_size,
    as_dtype,
    as_place,
    as_index,
    as_file,
    as_transform,
)
IGNORED_PLACES = (as_planner_data, as_storage_meta, as_version, as_another_attribute)
"""Places that nothing is read from, so a payload there does no harm."""


@pytest.mark.parametrize("place", [*REFUSED_PLACES, *IGNORED_PLACES])
def test_no_place_of_the_metadata_runs_code(
    checkpoint: Path, marker: Path, place: Callable[[Any, Payload], Any]
) -> None:
    change(checkpoint, lambda metadata: place(metadata, Payload(marker)))
    if place in REFUSED_PLACES:
        refuse(checkpoint)
    else:
        assert_equal(load(checkpoint), state_of(1))
    assert not marker.exists()
    unpickled(checkpoint)
    assert marker.exists(), "unpickled, each of them does run"


@pytest.mark.parametrize("content", [pickle.dumps, lambda payload: archive(payload), "legacy"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_no_tensor_runs_code(checkpoint: Path, marker: Path, content: Any, as_bytes: bool) -> None:
    """Also where the metadata say that it is none, but an object of any kind: PyTorch would unpickle that."""
    if content == "legacy":
        buffer = BytesIO()
        torch.save(Payload(marker), buffer, _use_new_zipfile_serialization=False)
        put_tensor(checkpoint, buffer.getvalue())
    else:
        # As many bytes as the tensor has, so that more than the size is looked at.
        put_tensor(checkpoint, content(Payload(marker)).rjust(5000, b"\0"))

    def say_bytes(metadata: Any) -> None:
        metadata.state_dict_metadata[NAME] = BytesStorageMetadata()
        index = next(index for index in metadata.storage_data if index.fqn == NAME)
        metadata.storage_data[MetadataIndex(NAME)] = metadata.storage_data.pop(index)

    if as_bytes:
        change(checkpoint, say_bytes)
    refuse(checkpoint, "BytesStorageMetadata" if as_bytes else NAME)
    assert not marker.exists()


def test_the_pickle_of_a_tensor_runs_no_code(checkpoint: Path, marker: Path) -> None:
    put_tensor(checkpoint, archive(torch.ones(1000), data_pkl=pickle.dumps(Payload(marker), 2)))
    refuse(checkpoint, "no plain tensor")
    assert not marker.exists()


def test_a_plan_with_bytes_is_refused(checkpoint: Path) -> None:
    """Whatever PyTorch makes of the metadata: what is no tensor is not read."""
    item: Any = type("Item", (), {"dest_index": MetadataIndex(NAME)})
    with pytest.raises(ValueError, match=f"{NAME} is no tensor"):
        TensorsOnly().load_bytes(item, BytesIO(b""))


# --- nothing else is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ".metadata", "__1_0.distcp", "__0_0.distcp/../x", ""])
def test_files_elsewhere_are_not_read(checkpoint: Path, name: str) -> None:
    (checkpoint.parent / "secret").write_bytes((checkpoint / TENSORS).read_bytes())

    def lead_elsewhere(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = name

    change(checkpoint, lead_elsewhere)
    refuse(checkpoint, "a file that is not there")


@pytest.mark.parametrize("file", [METADATA, TENSORS, f"{METADATA}.sha256", f"{TENSORS}.sha256"])
def test_nobody_waits_for_a_named_pipe(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    os.mkfifo(checkpoint / file)
    refuse(checkpoint, "is a named pipe")


@pytest.mark.parametrize(("start", "length"), [(0, 10**9), (10**9, 100), (2**62, 2**62), (-1, 5000), (True, 5000)])
def test_nothing_is_read_outside_of_the_file(checkpoint: Path, start: int, length: int) -> None:
    def move(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.offset, place.length = start, length

    change(checkpoint, move)
    refuse(checkpoint, "after the end" if type(start) is int and start >= 0 else "out of range")


# --- nothing asks for more than the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(10**15,), (1000, 10**9), (2**62, 2**62), (), (999,), (-1,), (1,) * 65])
def test_sizes_are_those_of_the_model(checkpoint: Path, size: tuple[int, ...]) -> None:
    def grow(metadata: Any) -> None:
        entry = metadata.state_dict_metadata[NAME]
        entry.size = torch.Size(size)
        entry.chunks = [ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(size))]

    change(checkpoint, grow)
    refuse(checkpoint)


def test_another_type_of_numbers_is_refused(checkpoint: Path) -> None:
    state = blank(state_of(1))
    state["weights"]["a"] = state["weights"]["a"].double()
    with pytest.raises(
        ValueError, match=r"its weights\.a is float32 \[1000\], and that of this model is float64 \[1000\]"
    ):
        make(checkpoint.parent).load(1, state)


@pytest.mark.parametrize(
    ("offsets", "sizes", "said"),
    [
        ([], [], "do not make up the whole"),
        ([0], [10], "do not make up the whole"),
        ([1], [1000], "lies outside"),
        ([10**15], [0], "lies outside"),
        ([0, 0], [1000, 1], "number of dimensions"),
        ([0], [-1000], "out of range"),
    ],
)
def test_parts_make_up_the_tensor(checkpoint: Path, offsets: list[int], sizes: list[int], said: str) -> None:
    """Else what is not filled would stay as it was, silently."""

    def cut(metadata: Any) -> None:
        part = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        metadata.state_dict_metadata[NAME].chunks = [part] if offsets else []

    change(checkpoint, cut)
    refuse(checkpoint, said)


def test_a_part_without_a_place_is_refused(checkpoint: Path) -> None:
    change(checkpoint, lambda metadata: metadata.storage_data.pop(MetadataIndex(NAME, [0])) and None)
    refuse(checkpoint, "does not say where a part of weights.a lies")


def test_parts_that_are_listed_again_and_again_are_not_looked_at(checkpoint: Path) -> None:
    """A list that tensors share costs a few bytes for each, and its length in time."""

    def share(metadata: Any) -> None:
        for entry in metadata.state_dict_metadata.values():
            entry.chunks = metadata.state_dict_metadata[NAME].chunks
        metadata.state_dict_metadata[NAME].chunks += metadata.state_dict_metadata[NAME].chunks * 3000

    change(checkpoint, share)
    refuse(checkpoint, "more parts of tensors than it can hold")


def test_metadata_are_no_larger_than_the_model_needs(checkpoint: Path) -> None:
    put(checkpoint, (checkpoint / METADATA).read_bytes().ljust(2 << 20, b"\0"))
    refuse(checkpoint, "too large for a metadata file")
    (checkpoint / f"{METADATA}.sha256").write_text("0" * 2000)
    refuse(checkpoint, "too large for a hash")


def stored(numbers: int = 1000, **options: Any) -> bytes:
    """Archive of a tensor of ones, packed anew with some options for its numbers."""
    changed = BytesIO()
    with zipfile.ZipFile(BytesIO(archive(torch.ones(numbers)))) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            options_of_it = options if info.filename == "archive/data/0" else {}
            new.writestr(info.filename, old.read(info), **options_of_it)
    return changed.getvalue()


def test_what_is_no_such_tensor_is_refused(checkpoint: Path) -> None:
    ones = torch.ones(1000)
    large = archive(ones)
    for data, said in (
        (stored(compress_type=zipfile.ZIP_DEFLATED).rjust(5000, b"\0"), "does not hold"),
        (archive(torch.ones(1000).double()[:500].clone()), "no tensor of torch.float32"),
        (archive(torch.ones(10, 100)), r"no float32 [1000]"),
        (archive(torch.ones(100).expand(10, 100).reshape(1000)[:999]), "no float32 [1000]"),
        (archive(torch.nn.Parameter(ones)), "no plain tensor"),
        (archive(ones.to_sparse()), "no plain tensor"),
        (archive({"a": ones}), "no plain tensor"),
        (archive(ones, byteorder=b"big"), "another order"),
        (archive(ones, numbers=b"\0" * 3999), "does not hold"),
        (archive(ones, data_pkl=b"\x80\x02." + b" " * 70_000), "bytes, which is no"),
        (large[: len(large) // 2].ljust(5000, b"\0"), "no tensor of ours"),
        (large.replace(b"archive/data/0", b"archive/data/1"), "no tensor of ours"),
        (b"", "0 bytes"),
        (b"\0" * 5000, "no tensor of ours"),
        (b"PK\x05\x06".ljust(22, b"\xff").rjust(5000), "no tensor of ours"),
    ):
        put_tensor(checkpoint, data)
        refuse(checkpoint, said)
    put_tensor(checkpoint, archive(ones * 3))
    assert torch.equal(load(checkpoint)["weights"]["a"], ones * 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"K\x00M\xe8\x03\x85", b"K\x01M\xe8\x03\x85", "strides lead out"),  # begins at the second number
        (b"K\x01\x85", b"K\x02\x85", "strides lead out"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85", "out of range"),
        (b"K\x01\x85", b"K\x01K\x01\x86", "number of strides"),
        (b"M\xe8\x03t", b"M\xe9\x03t", "no float32"),
        (b"FloatStorage", b"LongStorage", "no tensor of torch.float32"),
        (b"_rebuild_tensor_v2", b"_rebuild_tensor", "no plain tensor"),
    ],
)
def test_nothing_outside_of_its_numbers_is_read(checkpoint: Path, old: bytes, new: bytes, said: str) -> None:
    with zipfile.ZipFile(BytesIO(archive(torch.ones(1000)))) as whole:
        pickled = whole.read("archive/data.pkl")
    assert pickled.count(old) == 1
    put_tensor(checkpoint, archive(torch.ones(1000), data_pkl=pickled.replace(old, new)))
    refuse(checkpoint, said)


BOMBS = r"""
import pickle, resource, sys
from pathlib import Path
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from tests.support.foreign_checkpoints import NAME, archive, change, load, put, put_tensor, whole_checkpoint
folder = Path(sys.argv[1])

def huge(metadata):
    metadata.state_dict_metadata[NAME].size = torch.Size([10**15])
    metadata.state_dict_metadata[NAME].chunks = [ChunkStorageMetadata(torch.Size([0]), torch.Size([10**15]))]

def table(checkpoint):
    put(checkpoint, b"\x80\x04Nr\xff\xff\xff\x7f.")

def hashed(checkpoint):
    put(checkpoint, b"\x80\x04}N" + b"q\x00h\x00\x86" * 60 + b"Ns.")

def doubled(checkpoint):
    put_tensor(checkpoint, archive(torch.ones(1000), data_pkl=b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"Ns."))

def reserved(checkpoint):
    put_tensor(checkpoint, archive(torch.ones(1000), data_pkl=b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."))

bombs = [lambda checkpoint: change(checkpoint, huge), table, hashed, doubled, reserved]
checkpoints = [whole_checkpoint(folder / str(number)) for number in range(len(bombs))]
for checkpoint, arm in zip(checkpoints, bombs, strict=True):
    arm(checkpoint)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20), resource.RLIM_INFINITY))
for checkpoint in checkpoints:
    try:
        load(checkpoint)
    except ValueError as error:
        print("refused", error)
"""


def test_few_bytes_ask_for_little(tmp_path: Path) -> None:
    """With 128 MB of memory: a size of 10**15, a table of 2**31 objects, keys whose hash has 2**60 steps."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.count("refused checkpoint") == 5, done.stdout + done.stderr


# --- all that we write is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_tensors_of_every_layout_come_back(tmp_path: Path, asynchronous: bool) -> None:
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.complex64)
    state: dict[str, Any] = {
        "types": {str(dtype): (torch.randn(3, 2) * 50).to(dtype) for dtype in types},
        "turned": torch.randn(5, 7).t(),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "cut": torch.randn(100)[10:20],
        "spread": torch.randn(1, 3).expand(4, 3),
        "every second": torch.randn(20)[::2],
        "none": torch.zeros(0, 3),
        "number": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "large": torch.randn(3 << 18),  # more than one block
    }
    checkpoints = make(tmp_path, asynchronous=asynchronous)
    checkpoints.save(1, state)
    checkpoints.close()
    loaded = blank(state)
    make(tmp_path).load(1, loaded)
    assert_equal(loaded, state)


def test_a_checkpoint_says_nothing_about_the_machine(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        assert str(checkpoint.parent).encode() not in data and os.uname().nodename.encode() not in data, file


def test_a_hash_that_is_right_again_is_no_proof(checkpoint: Path) -> None:
    """What the attacks above rely on: a stranger writes the hashes, too."""
    data = bytearray((checkpoint / TENSORS).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / TENSORS).write_bytes(data)
    refuse(checkpoint, "is not as it was written")
    seal(checkpoint)
    try:
        load(checkpoint)
    except ValueError as error:
        assert "is not as it was written" not in str(error)
