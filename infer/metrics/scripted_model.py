"""Networks of the user's own that measure: TorchScript files, run on the CPU.

TorchScript because such a file carries its network: no code of the user's runs here, and the weights of the usual
measures are given out in this form or are brought into it by `torch.jit.script(network).save(path)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talkinghead.provenance import hash_file

_FLAGS = {"return_features", "rescale", "resize"}
"""Switches of the published Inception and I3D files, on where a network's forward takes them."""


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """A network from a TorchScript file."""

    purpose: str
    """`identity`, `sync`, …: for messages."""
    path: Path
    sha256: str
    module: Any
    """`torch.jit.ScriptModule`, in eval mode on the CPU."""
    flags: dict[str, bool]

    @classmethod
    def load(cls, purpose: str, path: Path) -> ScriptedModel:
        """Load a file.

        Raises:
            ValueError: It is not there, or no TorchScript file; the message says how to make one.
        """
        if not path.is_file():
            raise ValueError(f"the {purpose} model {path} is not there")
        try:
            module = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(
                f"the {purpose} model {path} is no TorchScript file: save it with torch.jit.script(network).save(path)"
                f" ({str(error).splitlines()[0]})"
            ) from error
        taken = {argument.name for argument in module.forward.schema.arguments}
        return cls(
            purpose=purpose,
            path=path,
            sha256=hash_file(path),
            module=module,
            flags=dict.fromkeys(sorted(_FLAGS & taken), True),
        )

    def features(self, batch: np.ndarray) -> np.ndarray:
        """One row of features for each row of a batch.

        Args:
            batch: `[N, …]`.

        Returns:
            `[N, D]` float32.

        Raises:
            ValueError: The network fails on it, or returns something else.
        """
        (found,) = self._rows(self._run(torch.from_numpy(batch)), len(batch), 1)
        return found

    def pair(self, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two rows of features, of two networks in one file, for each row of two batches; see `features`."""
        first, second = self._rows(self._run(torch.from_numpy(one), torch.from_numpy(other)), len(one), 2)
        return first, second

    def provenance(self) -> str:
        """For the notes of a result."""
        return f"{self.purpose} model {self.path.name} (sha256 {self.sha256})"

    def _run(self, *batches: torch.Tensor) -> Any:
        shapes = " and ".join(str(tuple(batch.shape)) for batch in batches)
        try:
            with torch.inference_mode():
                return self.module(*batches, **self.flags)
        except (RuntimeError, torch.jit.Error) as error:
            reason = (str(error).strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"the {self.purpose} model {self.path} fails on {shapes}: {reason}") from error

    def _rows(self, found: Any, rows: int, wanted: int) -> Iterator[np.ndarray]:
        tensors = [found] if isinstance(found, torch.Tensor) else found
        fitting = isinstance(tensors, list | tuple) and len(tensors) == wanted
        if not fitting or not all(isinstance(one, torch.Tensor) and one.shape[0] == rows for one in tensors):
            raise ValueError(f"the {self.purpose} model {self.path} must return {wanted} tensor(s) of {rows} rows")
        for tensor in tensors:
            values = tensor.reshape(rows, -1).float().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"the {self.purpose} model {self.path} returns values that are not finite")
            yield values
