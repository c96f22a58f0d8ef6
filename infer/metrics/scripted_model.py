"""The user's own networks for learned metrics: TorchScript files, executed on the CPU.

TorchScript because such a file carries its network: the user writes no code for this program, and the weights of the
usual metrics are published in this form or are brought into it by `torch.jit.script(network).save(path)`.
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
"""Arguments of the published Inception and I3D files; set to True where a network's forward has them."""


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """A network from a TorchScript file."""

    purpose: str
    """Purpose of the network (`identity`, `sync`, …); names it in messages."""
    path: Path
    sha256: str
    """SHA-256 of the file."""
    module: Any
    """`torch.jit.ScriptModule`, in eval mode on the CPU."""
    flags: dict[str, bool]
    """Arguments of its forward that are set, → True."""

    @classmethod
    def load(cls, purpose: str, path: Path) -> ScriptedModel:
        """The network of a file.

        Raises:
            ValueError: The file does not exist, or is no TorchScript file; the message tells how to make one.
        """
        if not path.is_file():
            raise ValueError(f"the {purpose} model {path} is not there")
        try:
            # A file saved from a GPU asks for one unless it is mapped.
            module = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(
                f"the {purpose} model {path} is no TorchScript file: save it with torch.jit.script(network).save(path)"
                f" ({str(error).splitlines()[0]})"
            ) from error
        # TorchScript refuses arguments that a forward does not declare: pass only those in its schema.
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
            batch: `[N, …]`, as the network's purpose asks (`infer.metrics.learned_metrics`).

        Returns:
            `[N, D]` float32; further axes of the network's output are flattened into D.

        Raises:
            ValueError: The network fails on the batch, or returns something else.
        """
        (found,) = self._rows(self._run(torch.from_numpy(batch)), len(batch), 1)
        return found

    def pair(self, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of two batches `[N, …]` by a file that holds two networks: `[N, D]` each. Raises like `features`."""
        first, second = self._rows(self._run(torch.from_numpy(one), torch.from_numpy(other)), len(one), 2)
        return first, second

    def provenance(self) -> str:
        """Purpose, file name and hash in one phrase, for the notes of a result."""
        return f"{self.purpose} model {self.path.name} (sha256 {self.sha256})"

    def _run(self, *batches: torch.Tensor) -> Any:
        shapes = " and ".join(str(tuple(batch.shape)) for batch in batches)
        try:
            with torch.inference_mode():
                return self.module(*batches, **self.flags)
        except (RuntimeError, torch.jit.Error) as error:
            # TorchScript puts the trace of its own code first and the reason last.
            reason = (str(error).strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"the {self.purpose} model {self.path} fails on {shapes}: {reason}") from error

    def _rows(self, found: Any, rows: int, wanted: int) -> Iterator[np.ndarray]:
        tensors = [found] if isinstance(found, torch.Tensor) else found
        fitting = isinstance(tensors, list | tuple) and len(tensors) == wanted
        if not fitting or not all(isinstance(one, torch.Tensor) and one.shape[0] == rows for one in tensors):
            raise ValueError(f"the {self.purpose} model {self.path} must return {wanted} tensor(s) of {rows} rows")
        for tensor in tensors:
            # Some networks keep the axes of their last pooling, [N, D, 1, 1] → [N, D].
            values = tensor.reshape(rows, -1).float().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"the {self.purpose} model {self.path} returns values that are not finite")
            yield values
