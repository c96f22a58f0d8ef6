"""Content of a checkpoint whose files may be a stranger's: names, shapes and places of the tensors, and the tensors.

PyTorch keeps the first as a pickle in `.metadata`, and each tensor as a zip archive with another pickle, one after the
other in the `.distcp` files. Both are read as plain data and compared with the state that is to be filled. What PyTorch
gets is made anew from names, numbers and bytes that passed; memory is taken only for tensors that the state has, too.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from train.trainer.plain_pickle import Call, Name, Pairs, Reference, read_pickle

METADATA_BYTES = 32 << 20
"""Largest metadata file: enough for some 200,000 parts of tensors. Its objects take up to 120 times as much memory."""
BYTES_OF_A_NAME = 32 << 10
"""Part of that for each tensor of the state: enough for 200 ranks that share a tensor."""
AVERAGES = "ema."
"""Beginning of the names of averages."""
LATER = ("medians",)
"""Parts of the state that checkpoints of older code lack: they stay as they are then."""
_MOST_DIMENSIONS = 64  # PyTorch's own limit
_HEADER_BYTES = 64 << 10  # of a tensor, next to its numbers; PyTorch writes about 1.5 KB
_BLOCK = 1 << 20

_TORCH_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE_INFO = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_DTYPES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage",
    torch.complex128: "ComplexDoubleStorage",
}
"""Type of the numbers → name that the pickle of a tensor has for it."""

Place = tuple[str, tuple[int, ...]]
"""Part of a tensor: name of the tensor, and offsets of the part in it."""


class OtherModel(ValueError):
    """The checkpoint is sound, but does not have the tensors of this state."""


# --- names, shapes and places -----------------------------------------------------------------------------------------


def metadata_limit(state: Mapping[str, torch.Tensor]) -> int:
    """Largest metadata file of a checkpoint of a state, in bytes."""
    return min(METADATA_BYTES, (1 << 20) + BYTES_OF_A_NAME * len(state))


def read_metadata(data: bytes, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> Metadata:
    """Metadata of a checkpoint, if it has exactly the tensors of a state.

    Args:
        data: Content of the metadata file.
        state: Name → tensor to fill; a sharded one counts as a whole.
        sizes: Name of each file that may hold tensors → its size in bytes.

    Raises:
        OtherModel: It has other tensors than the state.
        ValueError: It is no metadata of ours.
    """
    content = _object(read_pickle(data), Name(_TORCH_METADATA, "Metadata"))
    entries = _dict(content.get("state_dict_metadata"))
    # A run without averages once wrote its weights a second time under their names.
    if not any(name.startswith(AVERAGES) for name in state):
        entries = {name: entry for name, entry in entries.items() if not name.startswith(AVERAGES)}
    _check_names(set(entries), {name for name in state if name in entries or name.partition(".")[0] not in LATER})
    # Everything below costs as much as there are parts. They may be shared in the pickle, but not in one of ours: each
    # takes some bytes.
    stored = {name: _object(entry, Name(_TORCH_METADATA, "TensorStorageMetadata")) for name, entry in entries.items()}
    if sum(len(_list(entry.get("chunks"))) for entry in stored.values()) > len(data):
        raise ValueError("it lists more parts of tensors than it can hold")
    tensors = {name: _tensor_metadata(name, entry, state[name]) for name, entry in stored.items()}
    places = _places(content.get("storage_data"), sizes)
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            if MetadataIndex(name, chunk.offsets) not in places:
                raise ValueError(f"it does not say where a part of {name} lies")
    return Metadata(state_dict_metadata=dict(tensors), storage_data=places)


def _check_names(there: set[str], asked: set[str]) -> None:
    parts = [
        f"{text} {_short(min(names))}" for text, names in (("lacks", asked - there), ("has", there - asked)) if names
    ]
    if parts:
        raise OtherModel(f"it {' and '.join(parts)} (of {len(asked ^ there)} such names)")


def _tensor_metadata(name: str, entry: Mapping[str, Any], wanted: torch.Tensor) -> TensorStorageMetadata:
    size, dtype = _size(entry.get("size")), _dtype(entry.get("properties"))
    if size != tuple(wanted.shape) or dtype != wanted.dtype:
        raise OtherModel(f"its {name} is {_text(size, dtype)}, and that of this model is {_text(*_kind(wanted))}")
    # Inside the tensor, and as many numbers as it has.
    chunks = []
    for item in entry["chunks"]:
        part = _object(item, Name(_TORCH_METADATA, "ChunkStorageMetadata"))
        offsets, sizes = _size(part.get("offsets")), _size(part.get("sizes"))
        if not len(offsets) == len(sizes) == len(size):
            raise ValueError(f"a part of {name} has another number of dimensions than the whole")
        if any(offset + count > whole for offset, count, whole in zip(offsets, sizes, size, strict=True)):
            raise ValueError(f"a part of {name} lies outside of it")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the parts of {name} do not make up the whole")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(size), chunks)


def _places(value: Any, sizes: Mapping[str, int]) -> dict[MetadataIndex, _StorageInfo]:
    found: dict[MetadataIndex, _StorageInfo] = {}
    for key, item in _pairs(value):
        index, info = _object(key, Name(_TORCH_METADATA, "MetadataIndex")), _object(item, _STORAGE_INFO)
        name, file = _text_of(index.get("fqn")), _text_of(info.get("relative_path"))
        start, length = _count(info.get("offset")), _count(info.get("length"))
        # Only files that lie next to the metadata: never a path that leads elsewhere.
        if file not in sizes:
            raise ValueError(f"it places {_short(name)} in a file that is not there ({_short(file)})")
        if start + length > sizes[file]:
            raise ValueError(f"it places {_short(name)} after the end of {file}")
        if info.get("transform_descriptors") is not None:
            raise ValueError(f"it has {_short(name)} in another form (compressed?) than ours")
        found[MetadataIndex(name, _size(index.get("offset")))] = _StorageInfo(file, start, length)
    return found


def _short(text: str) -> str:
    """Beginning of a text that a stranger wrote."""
    return text if len(text) <= 100 else f"{text[:100]}…"


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


def _text(size: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} [{', '.join(map(str, size))}]"


# --- tensors ----------------------------------------------------------------------------------------------------------


def read_tensor(file: BinaryIO, start: int, length: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of which type and shape are known, out of a file.

    Args:
        file: File that holds it.
        start: Place of its first byte in the file.
        length: Number of its bytes.
        dtype: Type of its numbers.
        shape: Its shape.

    Raises:
        ValueError: It is no tensor, or has another type or shape.
        OSError: The file cannot be read.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size <= length <= size + _HEADER_BYTES:
        raise ValueError(f"it has {length:,} bytes, which is no {_text(shape, dtype)}")
    try:
        with zipfile.ZipFile(_Part(file, start, length)) as archive:
            # The archive has one folder, of any name, with the pickle, the numbers and the order of their bytes.
            folder = archive.namelist()[0].partition("/")[0]
            if _record(archive, f"{folder}/byteorder") != sys.byteorder.encode():
                raise ValueError("its numbers have another order of bytes than those of this machine")
            name, offset, strides = _layout(read_pickle(_record(archive, f"{folder}/data.pkl")), dtype, shape)
            flat = _numbers(archive, f"{folder}/data/{name}", dtype, math.prod(shape))
            return flat.as_strided(shape, strides, offset)
    except (zipfile.BadZipFile, struct.error, LookupError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is no tensor of ours ({type(error).__name__}: {_short(str(error))})") from error


def _layout(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[str, int, tuple[int, ...]]:
    """Name of the file of a tensor's numbers, place of the first one, and strides, of which all lie in that file."""
    if not isinstance(value, Call) or value.target != Name("torch._utils", "_rebuild_tensor_v2"):
        raise ValueError("it is no plain tensor")
    if value.state is not None or not isinstance(value.arguments, tuple) or len(value.arguments) != 6:
        raise ValueError("it is no plain tensor")
    # The last two, whether it needs a gradient and which hooks it has, do not matter.
    reference, first, size, strides, _, _ = value.arguments
    if not isinstance(reference, Reference) or not isinstance(reference.value, tuple) or len(reference.value) != 5:
        raise ValueError("it is no plain tensor")
    kind, storage_type, name, _, count = reference.value
    if kind != "storage" or not isinstance(name, str) or storage_type != Name("torch", _DTYPES.get(dtype, "")):
        raise ValueError(f"it is no tensor of {dtype}")
    if _counts(size) != shape or count != math.prod(shape):
        raise ValueError(f"it is no {_text(shape, dtype)}")
    offset, steps = _count(first), _counts(strides)
    if len(steps) != len(shape):
        raise ValueError("it has another number of strides than of dimensions")
    if count and offset + sum((extent - 1) * step for extent, step in zip(shape, steps, strict=True)) >= count:
        raise ValueError("its strides lead out of it")
    return name, offset if count else 0, steps


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    """Content of a small file in an archive."""
    about = archive.getinfo(name)
    if about.compress_type != zipfile.ZIP_STORED or about.file_size > _HEADER_BYTES:
        raise ValueError(f"its {name} is compressed or too large")
    return archive.read(about)


def _numbers(archive: zipfile.ZipFile, name: str, dtype: torch.dtype, count: int) -> torch.Tensor:
    """Flat tensor of the numbers that a file in an archive holds."""
    about = archive.getinfo(name)
    # Compressed, a few bytes could ask for any amount of memory.
    if about.compress_type != zipfile.ZIP_STORED or about.file_size != count * dtype.itemsize:
        raise ValueError(f"its {name} does not hold {count:,} numbers")
    flat = torch.empty(count, dtype=dtype)
    target = flat.view(torch.uint8).numpy().data
    with archive.open(about) as source:
        done = 0
        while block := source.read(_BLOCK):
            target[done : done + len(block)] = block
            done += len(block)
    if done != len(target):
        raise ValueError(f"its {name} is cut off")
    return flat


class _Part(io.RawIOBase):
    """Part of a file as a file of its own, of which only little is read at once."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if at < 0:
            raise ValueError("it is cut off")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        size = left if size < 0 else min(size, left)
        if size > _BLOCK:  # the table of contents of an archive is read as a whole, and must be small
            raise ValueError("its table of contents is too large")
        self._file.seek(self._start + self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data


# --- values of a pickle -----------------------------------------------------------------------------------------------


def _object(value: Any, kind: Name) -> dict[str, Any]:
    """Attributes of an object of a class."""
    if not isinstance(value, Call) or value.target != kind or value.arguments != ():
        named = value.target if isinstance(value, Call) and isinstance(value.target, Name) else type(value).__name__
        raise ValueError(f"it has {_short(str(named))} where a checkpoint of ours has {kind.name}")
    return _dict(value.state)


def _dict(value: Any) -> dict[str, Any]:
    return {_text_of(key): item for key, item in _pairs(value)}


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, Pairs):
        raise ValueError("it lacks a table")
    return value.items


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("it lacks a list")
    return value


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it lacks a name")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("it lacks a number, or has one that is out of range")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
        raise ValueError("it lacks a shape")
    return tuple(map(_count, value))


def _size(value: Any) -> tuple[int, ...]:
    """A `torch.Size`."""
    if not isinstance(value, Call) or value.target != Name("torch", "Size") or value.state is not None:
        raise ValueError("it lacks a shape")
    if not isinstance(value.arguments, tuple) or len(value.arguments) != 1:
        raise ValueError("it lacks a shape")
    return _counts(value.arguments[0])


def _dtype(properties: Any) -> torch.dtype:
    """Type of the numbers, the first of the properties of a tensor; the others do not matter."""
    if not isinstance(properties, Call) or properties.target != Name(_TORCH_METADATA, "TensorProperties"):
        raise ValueError("it lacks the properties of a tensor")
    if not isinstance(properties.state, tuple) or not properties.state:
        raise ValueError("it lacks the properties of a tensor")
    for dtype in _DTYPES:
        if properties.state[0] == Name("torch", str(dtype).removeprefix("torch.")):
            return dtype
    raise ValueError("it has numbers of a type that no checkpoint of ours has")
