"""Checkpoints as a stranger could make them: the files of a real one, changed, with hashes that are right again."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from talkinghead.provenance import hash_file
from tests.support.training_states import blank, make, state_of

METADATA = ".metadata"
TENSORS = "__0_0.distcp"
NAME = "weights.a"
"""Tensor of `state_of` that is changed."""


class Payload:
    """Object that makes a folder while it is unpickled, and so shows that code of a stranger ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def whole_checkpoint(folder: Path, size: int = 1000) -> Path:
    """Folder of a checkpoint of step 1 with the state of `state_of(1, size)`."""
    checkpoints = make(folder, asynchronous=False)
    checkpoints.save(1, state_of(1, size), block=True)
    return folder / "step-00000001"


def load(checkpoint: Path, size: int = 1000) -> dict[str, Any]:
    """State that comes out of a checkpoint of `whole_checkpoint`."""
    state = blank(state_of(1, size))
    make(checkpoint.parent).load(1, state)
    return state


def seal(checkpoint: Path) -> None:
    """Write the right hash next to each file."""
    for name in (METADATA, TENSORS):
        (checkpoint / f"{name}.sha256").write_text(hash_file(checkpoint / name))


def change(checkpoint: Path, how: Callable[[Any], Any]) -> None:
    """Change the metadata; `how` gets them, and returns others or changes those."""
    metadata = unpickled(checkpoint)
    changed = how(metadata)
    put(checkpoint, pickle.dumps(metadata if changed is None else changed))


def unpickled(checkpoint: Path) -> Any:
    """Metadata as `pickle` reads them: whatever is in there runs."""
    return pickle.loads((checkpoint / METADATA).read_bytes())  # noqa: S301  the test has written it


def put(checkpoint: Path, metadata: bytes) -> None:
    """Replace the metadata file."""
    (checkpoint / METADATA).write_bytes(metadata)
    seal(checkpoint)


def put_tensor(checkpoint: Path, data: bytes, name: str = NAME) -> None:
    """Put bytes in the place of a tensor: at the end of the file, with metadata that point there."""
    with (checkpoint / TENSORS).open("ab") as file:
        start = file.tell()
        file.write(data)

    def point(metadata: Any) -> None:
        place = next(place for index, place in metadata.storage_data.items() if index.fqn == name)
        place.offset, place.length = start, len(data)

    change(checkpoint, point)


def archive(tensor: Any, **replaced: bytes) -> bytes:
    """Zip archive that PyTorch makes of an object, with other files in it: `data_pkl=…`, `numbers=…`, `byteorder=…`."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    files = {"data_pkl": "archive/data.pkl", "numbers": "archive/data/0", "byteorder": "archive/byteorder"}
    other = {files[name]: data for name, data in replaced.items()}
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, other.get(info.filename, old.read(info)))
    return changed.getvalue()
