"""A network's outputs depend on its input alone, and equal inputs in a row are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest

from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.network import Network, load_network


@pytest.fixture
def network(official: FaceModel) -> Network:
    return Network(official.detector)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)


@contextmanager
def counted(network: Network) -> Iterator[list[None]]:
    """A list that grows by one for each real computation of a network."""

    class Counting:
        def __init__(self, interpreter: object) -> None:
            self.interpreter = interpreter

        def invoke(self) -> None:
            calls.append(None)
            self.interpreter.invoke()  # pyright: ignore[reportAttributeAccessIssue]

        def get_tensor(self, index: int) -> np.ndarray:
            return self.interpreter.get_tensor(index)  # pyright: ignore[reportAttributeAccessIssue]

    calls: list[None] = []
    interpreter = network._interpreter
    network._interpreter = Counting(interpreter)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield calls
    finally:
        network._interpreter = interpreter


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(one.tobytes() == other.tobytes() for one, other in zip(a, b, strict=True))


def test_the_same_input_is_computed_once(network: Network):
    with counted(network) as calls:
        first = network.run(pixels(0), 1 / 255)
        kept = [output.copy() for output in first]
        for output in first:
            output[...] = 7  # a caller may change its outputs without effect on the next call
        assert same(kept, network.run(pixels(0).copy(), 1 / 255)) and len(calls) == 1
        other = network.run(pixels(1), 1 / 255)
        assert not same(kept, other) and len(calls) == 2
        assert same(kept, network.run(pixels(0), 1 / 255)) and len(calls) == 3


def test_another_scale_offset_or_type_is_another_input(network: Network):
    with counted(network) as calls:
        zeros = np.zeros((128, 128, 3), np.uint8)
        answers = [network.run(zeros, 1.0), network.run(zeros, 1.0, -1.0), network.run(zeros, 1.0, 0.5)]
        assert len(calls) == 3 and not same(answers[0], answers[1]) and not same(answers[1], answers[2])
        values = pixels(2)
        assert not same(network.run(values, 1 / 255), network.run(values.view(np.int8), 1 / 255))


def test_pixels_changed_in_place_are_seen(network: Network):
    values = pixels(3)
    before = network.run(values, 1 / 255)
    values[40:80, 40:80] = 0
    assert not same(before, network.run(values, 1 / 255))
    assert same(before, network.run(pixels(3), 1 / 255))


def test_a_refused_input_leaves_no_answer_after(network: Network):
    right = network.run(pixels(4), 1 / 255)
    with pytest.raises(ValueError):
        network.run(np.zeros((64, 64, 3), np.uint8), 1 / 255)
    with counted(network) as calls:
        assert same(right, network.run(pixels(4), 1 / 255)) and len(calls) == 1


def test_detectors_of_a_thread_share_network_and_look(official: FaceModel):
    frame = np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    one, another = FaceDetector(official), FaceDetector(official, min_score=0.2)
    with counted(load_network(official.detector)) as calls:
        one.detect(frame)
        another.detect(frame)
        assert len(calls) == 1
        one.detect(frame[::-1])
        assert len(calls) == 2


def test_networks_are_loaded_once_per_thread(official: FaceModel):
    network = load_network(official.detector)
    assert load_network(official.detector) is network
    assert load_network(bytes(bytearray(official.detector))) is network  # an equal copy
    assert load_network(official.detector, threads=2) is not network
    others: list[Network] = []
    thread = Thread(target=lambda: others.append(load_network(official.detector)))
    thread.start()
    thread.join()
    assert others[0] is not network
