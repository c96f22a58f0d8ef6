"""The user's own networks for learned metrics: TorchScript files, executed on the CPU.

TorchScript because such a file carries its network: the user writes no code for this program, and the weights of the
usual metrics are published in this form or are brought into it by `torch.jit.script(network).save(path)`.

Such a file is a program of its author, which runs while it is loaded already, and TorchScript can read and write any
file. So it runs in a process of its own (`infer.metrics.scripted_child`) that can neither open files nor connect, start
programs or touch other processes (`infer.metrics.confinement`), within limits of memory and time. That process is sent
the file's bytes and the batches; only numbers come back, and sizes are checked. On a system that cannot confine a
process no such file runs.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer.metrics.scripted_child import FEATURES, MOST_COLUMNS, NO_MEMORY, READY, SIZE, UNFIT
from infer.metrics.scripted_process import NoReplyError, ProcessEndedError, ScriptedProcess
from talkinghead.files.foreign import open_regular
from talkinghead.runtime.errors import one_line

MOST_BYTES = 4 * 2**30
"""Largest TorchScript file."""
_START_S = 600.0  # to import PyTorch and give everything up; nothing of the file runs then
_QUOTED = 200  # characters of a reason that are quoted


@dataclass(frozen=True, kw_only=True)
class ScriptLimits:
    """Memory and time that a TorchScript file may take."""

    memory: float = 8.0
    """Memory of its process in GiB, in addition to what PyTorch itself takes; the file's own size counts twice."""
    seconds: float = 600.0
    """Time to load it, and time for each batch."""


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """A network from a TorchScript file, in a confined process that ends with this object."""

    purpose: str
    """Purpose of the network (`identity`, `sync`, …); names it in messages."""
    path: Path
    sha256: str
    """SHA-256 of the bytes that run."""
    limits: ScriptLimits
    process: ScriptedProcess

    @classmethod
    def load(cls, purpose: str, path: Path, limits: ScriptLimits | None = None) -> ScriptedModel:
        """The network of a file.

        Raises:
            ValueError: The file does not exist, is no TorchScript file (the message tells how to make one) or takes
                more than the limits; or this system cannot confine a process.
            OSError: The file cannot be read, or no process can be started.
        """
        limits = limits or ScriptLimits()
        content = _read(purpose, path)
        process = ScriptedProcess(int(limits.memory * 2**30))
        sha256 = hashlib.sha256(content).hexdigest()
        model = cls(purpose=purpose, path=path, sha256=sha256, limits=limits, process=process)
        weakref.finalize(model, process.end)
        # Ready means confined: only then is the file sent.
        model.wait_until_confined()
        failing = "cannot be loaded, or is no TorchScript file: save it with torch.jit.script(network).save(path)"
        model._ask({"bytes": len(content)}, [content], READY, 0, failing, "loading")
        return model

    def wait_until_confined(self) -> None:
        """Wait until the process can run the file; `ValueError` where this system cannot confine it."""
        try:
            kind, content = self.process.wait_until_ready(_START_S)
            reason = None if kind == READY else _quoted(content)
        except ProcessEndedError as error:
            reason = str(error)
        except NoReplyError:
            reason = f"its process is not ready after {_START_S:g} s"
        if reason is not None:
            self.close()
            raise ValueError(
                f"{self._name} is a program, and this system cannot run it where it can neither open files nor connect"
                f" ({reason}): take one that can (Linux on x86-64 or 64-bit ARM), or leave this metric out"
            )

    def features(self, batch: np.ndarray) -> np.ndarray:
        """One row of features for each row of a batch.

        Args:
            batch: `[N, …]` float32, as the network's purpose asks (`infer.metrics.learned_metrics`).

        Returns:
            `[N, D]` float32; further axes of the network's output are flattened into D, at most 2^20.

        Raises:
            ValueError: The network fails on the batch, takes more than the limits, or returns something else.
        """
        (found,) = self._run([batch], 1)
        return found

    def pair(self, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of two batches `[N, …]` by a file that holds two networks: `[N, D]` each. Raises like `features`."""
        first, second = self._run([one, other], 2)
        return first, second

    def provenance(self) -> str:
        """Purpose, file name and hash in one phrase, for the notes of a result."""
        return f"{self.purpose} model {self.path.name} (sha256 {self.sha256})"

    def close(self) -> None:
        """End the process; the network cannot be used afterwards."""
        self.process.end()

    @property
    def _name(self) -> str:
        return f"the {self.purpose} model {self.path}"

    def _run(self, batches: Sequence[np.ndarray], wanted: int) -> list[np.ndarray]:
        """Features `[N, D]` of batches `[N, …]`: one array for each tensor that the network returns."""
        rows = len(batches[0])
        shapes = [batch.shape for batch in batches]
        shown = " and ".join(map(str, shapes))
        reply = self._ask(
            {"shapes": shapes, "wanted": wanted},
            [np.ascontiguousarray(batch, np.float32) for batch in batches],
            FEATURES,
            wanted * (SIZE.size + 4 * rows * MOST_COLUMNS),
            f"fails on {shown}",
            f"a batch of {shown}",
        )
        # The numbers of columns, then the values of each tensor: together exactly what came.
        sizes, values = reply[: wanted * SIZE.size], reply[wanted * SIZE.size :]
        columns = [size for (size,) in SIZE.iter_unpack(sizes)] if len(sizes) == wanted * SIZE.size else []
        if len(columns) != wanted or 4 * rows * sum(columns) != len(values):
            raise ValueError(
                f"{self._name} must return {wanted} tensor(s) of {rows} rows, and replies with other bytes"
            )
        ends = np.cumsum([rows * size for size in columns])
        found = [part.reshape(rows, -1) for part in np.split(np.frombuffer(values, np.float32), ends[:-1])]
        if not all(np.isfinite(part).all() for part in found):
            raise ValueError(f"{self._name} returns values that are not finite")
        return found

    def _ask(
        self, request: dict[str, object], parts: list[object], wanted: int, most: int, failing: str, doing: str
    ) -> bytes:
        """Content of the reply of the wanted kind; `failing` and `doing` say in messages what was asked for."""
        try:
            kind, content = self.process.ask(request, parts, most=most, seconds=self.limits.seconds)
        except ProcessEndedError as error:
            raise ValueError(f"{self._name} {failing}: {error}") from error
        except NoReplyError as error:
            raise ValueError(
                f"{self._name} takes longer than {self.limits.seconds:g} s for {doing}; if it is not stuck, give it"
                " --metric-seconds"
            ) from error
        if kind == wanted:
            return content
        # A file that cannot be loaded, or was refused memory, is not asked again.
        if wanted == READY or kind == NO_MEMORY:
            self.close()
        if kind == NO_MEMORY:
            raise ValueError(
                f"{self._name} takes more than {self.limits.memory:g} GiB for {doing}; if that is right, give it"
                " --metric-memory"
            )
        if kind == UNFIT:
            raise ValueError(f"{self._name} {_quoted(content)}")
        raise ValueError(f"{self._name} {failing}: {_quoted(content)}")


def _read(purpose: str, path: Path) -> bytes:
    """Content of a TorchScript file: read once, so that the bytes that run are those whose hash is stated."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(size) if size <= MOST_BYTES else b""
    except FileNotFoundError as error:
        raise ValueError(f"the {purpose} model {path} is not there") from error
    except ValueError as error:
        raise ValueError(f"the {purpose} model {error}") from error
    if size > MOST_BYTES:
        raise ValueError(f"the {purpose} model {path} has {size:,} bytes: more than {MOST_BYTES:,} are not read")
    return content


def _quoted(content: bytes) -> str:
    """A reason that the process gives, as one short line: its author may have written anything into it."""
    text = " ".join(content.decode(errors="replace").split())
    # PyTorch's own texts advise to load without checks: that is not passed on.
    text = text.partition("weights_only")[0]
    shown = one_line(text)
    return shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]}…"
