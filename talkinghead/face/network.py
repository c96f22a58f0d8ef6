"""A TFLite network run by LiteRT on the CPU (XNNPACK)."""

from __future__ import annotations

import threading

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Network:
    """One network with one input. Its outputs depend on nothing else; it belongs to the thread that made it."""

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
        self._answered: tuple[np.dtype, bytes, float, float] | None = None

    def run(self, values: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> list[np.ndarray]:
        """The outputs, in the file's order, for `values · scale + offset`.

        Called with equal arguments again, it returns without computing: detectors of one thread share a network, and
        several of them get the same frame. Comparing the values takes 10 µs.

        Args:
            values: Input in `input_shape` without the batch axis, any dtype; written into the network's memory without
                a copy on the way.
            scale: Factor from the values to the network's input.
            offset: Added after the factor.

        Raises:
            ValueError: The values have another shape.
        """
        asked = (values.dtype, values.tobytes(), scale, offset)
        if asked != self._answered:
            self._answered = None  # if this fails, the outputs belong to no input
            target = self._input()[0]
            np.multiply(values, np.float32(scale), out=target, dtype=np.float32, casting="unsafe")
            if offset:
                np.add(target, np.float32(offset), out=target)
            del target  # the interpreter refuses to run while a view of its memory is alive
            self._interpreter.invoke()
            self._answered = asked
        return [self._interpreter.get_tensor(index) for index in self._outputs]


_loaded = threading.local()


def load_network(data: bytes, threads: int = 1) -> Network:
    """The network of these bytes, loaded once per process and thread (loading takes longer than several frames)."""
    networks: dict[tuple[bytes, int], Network] = _loaded.__dict__.setdefault("networks", {})
    if (data, threads) not in networks:  # Python keeps the hash of bytes: looking up the same object costs nothing
        networks[data, threads] = Network(data, threads)
    return networks[data, threads]
