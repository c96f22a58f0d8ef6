"""A TFLite network run by LiteRT on the CPU (XNNPACK)."""

from __future__ import annotations

import threading

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from talkinghead.provenance import hash_bytes


class Network:
    """One network with one input. It keeps no state between calls, and belongs to the thread that made it."""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        """Load the network from the bytes of a `.tflite` file.

        Raises:
            ValueError: The bytes are no TFLite model.
        """
        self._interpreter = Interpreter(model_content=data, num_threads=threads)
        self._interpreter.allocate_tensors()
        source = self._interpreter.get_input_details()[0]
        self.input_shape: tuple[int, ...] = tuple(int(n) for n in source["shape"])
        self._input = self._interpreter.tensor(source["index"])
        self._outputs = [int(detail["index"]) for detail in self._interpreter.get_output_details()]

    def run(self, values: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> list[np.ndarray]:
        """The outputs, in the file's order, for `values · scale + offset`.

        Args:
            values: `input_shape` without the batch axis, any dtype; written into the network's memory without a copy
                on the way.
        """
        np.multiply(values, np.float32(scale), out=self._input()[0], dtype=np.float32, casting="unsafe")
        if offset:
            np.add(self._input(), np.float32(offset), out=self._input())
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


_loaded = threading.local()


def load_network(data: bytes, threads: int = 1) -> Network:
    """The network of these bytes, loaded once per process and thread (loading takes longer than several frames)."""
    networks: dict[tuple[str, int], Network] = _loaded.__dict__.setdefault("networks", {})
    key = (hash_bytes(data), threads)
    if key not in networks:
        networks[key] = Network(data, threads)
    return networks[key]
