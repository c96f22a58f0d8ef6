"""What Ray Train keeps to itself and we rely on: found out here when a release changes it, not in a long training."""

from __future__ import annotations

import inspect

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from train.launch.ray_train import _failure


def test_ray_train_asks_one_method_what_to_do_about_ctrl_c() -> None:
    """The launcher overrides it, so that a checkpoint is written first."""
    method = TorchTrainer._register_sigint_handler
    assert list(inspect.signature(method).parameters) == ["self", "controller"]
    module = inspect.getmodule(method)
    assert module is not None and "self._register_sigint_handler(controller)" in inspect.getsource(module)


def test_what_a_worker_raised_is_found_in_what_ray_raises() -> None:
    said = UserExceptionWithTraceback(ValueError("the learning rate is negative"), "Traceback …")
    failure = _failure(WorkerGroupError("a worker failed", {1: said, 2: RuntimeError("lost a peer")}))
    assert (failure.kind, failure.rank, failure.message) == ("user", 1, "the learning rate is negative")
