"""The process in which a user's TorchScript file is loaded and runs: it gets bytes and batches, and gives features.

`python -m infer.metrics.scripted_child PARENT THREADS BYTES`, started by `infer.metrics.scripted_model`. On stdin come
requests: their size (8 bytes), a JSON object, and raw bytes or values. On stdout go replies: their kind (1 byte), the
size of what follows (8 bytes), and that. The parent is trusted here; nothing that comes from here is trusted there.

The order is what protects the user: everything that needs a file (modules, libraries, the code paths of PyTorch that
read the machine's properties) is run on a network of our own first; then the process is confined; only then does it
read the first byte of the user's file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
from collections.abc import Sequence
from typing import IO, Any, NoReturn

import numpy as np
import torch

from infer.metrics.confinement import confine
from talkinghead.runtime.child_process import end_with

READY, FEATURES, NOT_CONFINED, UNFIT, FAILED, NO_MEMORY = range(6)
"""Kinds of reply: ready for the file, or for the next batch; features; and why there are none."""
HEADER = struct.Struct("<BQ")
"""Kind of a reply and size of what follows."""
SIZE = struct.Struct("<Q")
"""Size of a request's JSON object; columns of one tensor of features."""
MOST_TEXT = 2000
"""Longest reason that is told, in bytes."""
MOST_COLUMNS = 2**20
"""Largest number of features of one row."""

_FLAGS = {"return_features", "rescale", "resize"}
"""Arguments of the published Inception and I3D files; set to True where a network's forward has them."""


# --- before confinement -----------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """The child: warm up, give everything up, and serve until stdin ends."""
    parent, threads, memory = (int(argument) for argument in sys.argv[1:])
    end_with(parent)
    requests, replies = _take_pipes()
    try:
        torch.set_num_threads(threads)
        _warm_up()
        confine(memory)
    except Exception as error:  # noqa: BLE001  whatever it is: the file must not run now
        _reply(replies, NOT_CONFINED, _reason(error))
        os._exit(1)
    _reply(replies, READY)
    _serve(requests, replies)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Requests and replies. Whatever else prints or reads meets nothing, and no other file stays open."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  numbers, not files
        if number > 2 and number not in (requests, replies):
            with contextlib.suppress(OSError):  # the listing's own, closed already
                os.close(number)
    return os.fdopen(requests, "rb", buffering=0), os.fdopen(replies, "wb", buffering=0)


class _WarmUp(torch.nn.Module):
    """Network of our own that calls what PyTorch prepares on first use: convolution, BLAS, LAPACK, FFT, threads."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `[8, 8]` of images `[N, 3, H, W]`."""
        found = torch.relu(self.convolution(torch.nn.functional.interpolate(x, size=[64, 64], mode="bilinear")))
        rows = torch.jit.wait(torch.jit.fork(self.linear, found.mean(dim=[2, 3])))  # [N, 8]
        square = rows.t() @ rows + torch.eye(8)
        # Some processors compute with 16 bits only in processes that have asked for it.
        square = square + (square.to(torch.bfloat16) @ square.to(torch.bfloat16)).to(torch.float32)
        return torch.linalg.solve(square, torch.fft.rfft(square).real[:, :1]).expand(8, 8) + torch.rand(8, 8)


def _warm_up() -> None:
    """Load and run a file of our own, and one that is none: all that these take of the system is there afterwards."""
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(_WarmUp().eval()), saved)
    module, _ = _load(saved.getvalue())
    with torch.inference_mode():
        for _ in range(3):  # TorchScript watches two calls and optimises the third
            module(torch.zeros(16, 3, 128, 128))
    with contextlib.suppress(RuntimeError):
        _load(b"no network")


# --- the user's program -----------------------------------------------------------------------------------------------


def _serve(requests: IO[bytes], replies: IO[bytes]) -> NoReturn:
    """Load the file that comes first, then run it on every batch that follows."""
    loaded: tuple[Any, dict[str, bool]] | None = None
    while True:
        request = json.loads(_read(requests, *SIZE.unpack(_read(requests, SIZE.size))))
        try:
            if loaded is None:
                loaded = _load(bytes(_read(requests, request["bytes"])))
                _reply(replies, READY)
            else:
                batches = [_tensor(requests, shape) for shape in request["shapes"]]
                _reply(replies, *_features(*loaded, batches, request["wanted"]))
        except Exception as error:  # noqa: BLE001  any error is the file's: it is told, and the parent decides
            without_memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
            _reply(replies, NO_MEMORY if without_memory else FAILED, _reason(error))
            if loaded is None or without_memory:
                os._exit(1)


def _load(content: bytes) -> tuple[Any, dict[str, bool]]:
    """The network of a TorchScript file, and the arguments of its forward that are set."""
    # A file saved from a GPU asks for one unless it is mapped.
    module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    # TorchScript refuses arguments that a forward does not declare: pass only those in its schema.
    taken = {argument.name for argument in module.forward.schema.arguments}
    return module, dict.fromkeys(sorted(_FLAGS & taken), True)


def _features(
    module: Any, flags: dict[str, bool], batches: Sequence[torch.Tensor], wanted: int
) -> tuple[int, bytes | str]:
    """Reply to batches of N rows: `wanted` tensors `[N, D]` float32, or that the network returns something else."""
    rows = len(batches[0])
    with torch.inference_mode():
        found = module(*batches, **flags)
        tensors = [found] if isinstance(found, torch.Tensor) else found
        fitting = isinstance(tensors, list | tuple) and len(tensors) == wanted
        if not fitting or not all(isinstance(one, torch.Tensor) and one.shape[:1] == (rows,) for one in tensors):
            return UNFIT, f"must return {wanted} tensor(s) of {rows} rows"
        # Some networks keep the axes of their last pooling, [N, D, 1, 1] → [N, D].
        values = [np.ascontiguousarray(tensor.reshape(rows, -1).float().numpy()) for tensor in tensors]
    if any(value.shape[1] > MOST_COLUMNS for value in values):
        return UNFIT, f"must return {MOST_COLUMNS:,} features of a row at most"
    return FEATURES, b"".join([*(SIZE.pack(value.shape[1]) for value in values), *(value.data for value in values)])


def _reason(error: Exception) -> str:
    """The line of an error's text that says why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # TorchScript puts the trace of its own code first and the reason last.
    return lines[-1] if "Traceback" in str(error) else lines[0]


# --- pipes ------------------------------------------------------------------------------------------------------------


def _tensor(stream: IO[bytes], shape: Sequence[int]) -> torch.Tensor:
    data = _read(stream, 4 * int(np.prod(shape, dtype=np.int64)))
    return torch.frombuffer(data, dtype=torch.float32).reshape(tuple(shape))


def _read(stream: IO[bytes], size: int) -> bytearray:
    """So many bytes; ends the process when the parent has closed the pipe."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        read = stream.readinto(rest)  # type: ignore[attr-defined]
        if not read:
            os._exit(0)  # at once: the cleanup of libraries may want files
        rest = rest[read:]
    return data


def _reply(stream: IO[bytes], kind: int, content: bytes | str = b"") -> None:
    data = content if isinstance(content, bytes) else content.encode(errors="replace")[:MOST_TEXT]
    rest = memoryview(HEADER.pack(kind, len(data)) + data)
    while rest:
        rest = rest[stream.write(rest) :]


if __name__ == "__main__":
    main()
