"""Files of weights, which may be a stranger's: tensors come out of them, no more than they hold, and nothing is run.

safetensors hold tensors only. What `torch.save` wrote is a pickle, which could run code: it is read with PyTorch's
allow-list of types (`weights_only`), and formats for which there is no such list are refused.
"""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from talkinghead.files.foreign import open_regular, read_json

DIFFUSERS_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
)
"""File names of weights in a folder in the layout of `diffusers`, best first."""
TRANSFORMERS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names of weights in a folder in the layout of `transformers`, best first."""

_WRAPPERS = ("state_dict", "module")
"""Names under which training programs store the weights when they save other things with them."""
_HEADER_BYTES = 16 << 20
"""Most bytes of a safetensors header: 100,000 tensors need fewer."""
_PICKLE_BYTES = 64 << 20
"""Most bytes of the pickle in a file of `torch.save`, which holds names and shapes only."""
_LFS_POINTER = b"version https://git-lfs"
"""First bytes of what Git LFS leaves where a file was not fetched."""
_INDEX = ".index.json"
"""End of the name of an index, which names the files among which the weights are split."""


def find_weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of the weights in a network's folder: one, or the parts that an index names.

    Args:
        folder: Folder of the network.
        names: Names of the file or the index, best first.

    Raises:
        ValueError: There are none, a part is missing, or the index names files elsewhere.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"no weights in {folder}: wanted is one of {', '.join(names)}")
    if not found.name.endswith(_INDEX):
        return [found]
    index = read_json(found)
    table = index.get("weight_map") if isinstance(index, dict) else None
    parts = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    if not parts:
        raise ValueError(f"{found} names no files of weights: copy the folder again")
    # A plain name and the kind of the index: `../../x` would be any file of the user's.
    suffix = Path(found.name.removesuffix(_INDEX)).suffix
    for part in parts:
        if Path(part).name != part or not part.endswith(suffix):
            raise ValueError(f"{found} names {part!r}, which is no {suffix} file in its folder: copy the folder again")
    if missing := [part for part in parts if not (folder / part).is_file()]:
        raise ValueError(f"weights {', '.join(missing[:5])} are missing in {folder}: copy the folder again")
    return [folder / part for part in parts]


def read_folder(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a network's folder by name, no larger than its files.

    Args:
        folder: Folder of the network.
        names: Names of the file or the index, as for `find_weight_files`.

    Raises:
        ValueError: There are no weights, or they are damaged, or tensors are claimed that no file holds.
    """
    found: dict[str, Tensor] = {}
    for file in find_weight_files(folder, names):
        tensors = read_weights(file)
        # A tensor of any shape can be made of one number. The shapes of published files are known, those of a folder
        # come with it. Twice, because two names may share a tensor's bytes.
        claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if claimed > 2 * file.stat().st_size:
            raise ValueError(f"{file} claims tensors of {claimed:,} bytes, which it does not hold: copy it again")
        found |= tensors
    return found


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name. They are mapped: their bytes are read when they are used.

    Nothing but tensors and plain values is unpickled. Weights under `state_dict` are taken from there; the prefix
    `module.` of data-parallel training is cut off; plain values next to tensors (step numbers, settings) are left out.

    Args:
        file: `.safetensors`, or what `torch.save` wrote (`.pth`, `.pt`, `.ckpt`, `.bin`).

    Raises:
        ValueError: The file is missing or damaged, holds no tensors, or some without values.
    """
    path = Path(file)
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        open_regular(path).close()  # no pipe, which might never open
        content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        raise ValueError(
            f"{path} cannot be read as weights; it is damaged, cut short or of another kind: copy it again"
            f" ({_other_content(path) or loading_error(error)})"
        ) from error
    # Unwrap, and keep the tensors.
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ValueError(f"{path} holds no table of tensors: give the published file as it is")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{path}: the tensor {name} is sparse, quantised or without values: no plain weights")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def loading_error(error: BaseException) -> str:
    """What was wrong with a file of weights, in one line.

    PyTorch's own texts are not quoted: several advise to load the file without the allow-list, or to save it anew.
    """
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    # Of an archive without its end PyTorch seeks to a place before its beginning.
    broken_off = isinstance(error, OSError) and error.errno == errno.EINVAL
    if broken_off or isinstance(error, EOFError) or "unexpected EOF" in text or "central directory" in text:
        return "it is cut short"
    if isinstance(error, (SafetensorError, OSError)) or (type(error) is ValueError and "weights_only" not in text):
        return first[:200]  # the library's, which has no such advice, the system's, or ours
    if "tar" in text and "weights_only" in text:
        return "it is in the format of PyTorch before 0.4, which may hold code, and of which no weights are read"
    return "its pickle holds something other than tensors and plain values, or is damaged"


def _other_content(path: Path) -> str | None:
    """What a file holds in place of weights: the usual ends of a failed download; None for anything else."""
    if not path.is_file():  # a pipe might never open
        return None
    with path.open("rb") as stream:
        begin = stream.read(256)
    if not any(begin):
        return "it begins with zeros, as a download that was broken off" if begin else "it is empty"
    if begin.startswith(_LFS_POINTER):
        return "it is the pointer that Git LFS leaves in place of a file: fetch it with git lfs pull"
    if begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as a download leaves it that needs a login or a confirmation"
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and {_HEADER_BYTES:,} are the most")
    return safetensors.torch.load_file(path)


def _unpickle(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        # A file from before PyTorch 1.6 is no archive and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)
    _check_archive(path)
    # Mapped into memory: of gigabytes only the pages in use are read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_archive(path: Path) -> None:
    """Raise `ValueError` for an archive that `torch.save` did not write: packed, scripted, or with a huge pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise ValueError("it is a TorchScript archive, which holds code; of such no weights are read")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is a compressed archive, which PyTorch does not write")
    size = entries["data.pkl"].file_size if "data.pkl" in entries else 0
    if size > _PICKLE_BYTES:
        raise ValueError(f"its table of tensors has {size:,} bytes, and {_PICKLE_BYTES:,} are the most")
