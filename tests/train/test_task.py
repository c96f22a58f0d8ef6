"""What holds for the loss of every task: it reads no number of a tensor, so that a GPU never waits for Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from talkinghead.files.storage import Storage
from tests.support.face_clips import build_face_data
from tests.support.host_reads import HostReads
from tests.support.lmk2video_tasks import prepared as prepared_images
from tests.support.lmk2video_tasks import shake
from tests.support.speech_data import build_speech_data
from tests.support.training import batches_of, losses_of
from tests.train.audio2lmk.test_task import prepared as prepared_speech
from train.task import Batch, Task

# Every term of the losses is on.
SPEECH = {"velocity_weight": 0.5, "min_window_frames": 8}
IMAGES: dict[str, Any] = {"drop_both": 0.3, "drop_reference": 0.2, "drop_token": 0.2, "face_weight": 2.0}
CHANGES = {
    "audio2mesh": {**SPEECH, "lip_weight": 1.0},
    "audio2pose": {**SPEECH, "dropout": 0.1},
    "lmk2video-stage1": IMAGES,
    "lmk2video-stage2": IMAGES,
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module", params=CHANGES)
def task(request: pytest.FixtureRequest, speech: Storage, faces: Storage, tmp_path_factory: Any) -> Task:
    """Each of the tasks, as its recipe `tiny` makes it, on small windows."""
    folder = tmp_path_factory.mktemp(request.param)
    more: dict[str, Any] = CHANGES[request.param]
    if request.param.startswith("audio"):
        return prepared_speech(request.param, speech, folder / "task", **more)
    if request.param == "lmk2video-stage2":
        first = prepared_images("lmk2video-stage1", faces, folder / "first")
        (folder / "pretrained_model").mkdir()
        first.export(first.build(), folder / "pretrained_model")
        more = more | {"stage1": str(folder)}
    return prepared_images(request.param, faces, folder / "task", **more)


@pytest.fixture(scope="module")
def batches(task: Task) -> list[Batch]:
    return [batch for _, batch in zip(range(2), batches_of(task, 2), strict=False)]


def test_a_loss_reads_no_number_forward_or_backward(task: Task, batches: list[Batch]) -> None:
    module = task.build().train()
    shake(module, only_trained=True)
    # The first pass copies what stays on the device.
    losses_of(task, module, batches[0])["loss"].sum().backward()
    with HostReads() as reads:
        losses_of(task, module, batches[1])["loss"].sum().backward()
    assert not reads.found, f"\n{reads}"
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters())


def test_a_loss_is_computed_where_there_are_no_numbers(task: Task, batches: list[Batch]) -> None:
    """On the device `meta` tensors have shapes alone: to read a number there, or to mix in one of the CPU, is an
    error."""
    module = nn.Module.to(task.build().train(), "meta")
    batch = batches[0]
    if "target" in batch:  # as with stored latents: autocast knows no such device, and the encoders step out of it
        batch = batch | {
            "target_moments": batch["noise"].repeat(1, 1, 2, 1, 1).half(),
            "reference_moments": batch["reference_draw"].repeat(1, 2, 1, 1).half(),
            "reference_embedding": torch.zeros(2, task.encoder.embedding_size).half(),  # type: ignore[attr-defined]
        }
    batch = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    losses = losses_of(task, module, batch)
    losses["loss"].sum().backward()
    assert all(loss.device.type == "meta" and loss.shape == (2,) for loss in losses.values())


# --- the count of reads itself ----------------------------------------------------------------------------------------


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 2

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return gradient[0] * gradient[0].sum().item()


VALUES = torch.arange(6.0).reshape(2, 3)
MASK = VALUES > 2


@pytest.mark.parametrize(
    ("read", "operation"),
    [
        (lambda: VALUES.sum().item(), "item"),
        (lambda: VALUES.tolist(), "tolist"),
        (lambda: VALUES.cpu(), "cpu"),
        (lambda: VALUES.numpy(), "numpy"),
        (lambda: bool(VALUES.sum() > 0), "__bool__"),
        (lambda: 1 if VALUES.sum() > 0 else 0, "__bool__"),
        (lambda: float(VALUES.sum()), "__float__"),
        (lambda: int(VALUES.sum()), "__int__"),
        (lambda: "abc"[MASK.sum() * 0], "__index__"),
        (lambda: VALUES[MASK], "aten::index"),
        (lambda: torch.where(MASK), "aten::nonzero"),
        (lambda: VALUES.unique(), "aten::_unique2"),
        (lambda: torch.equal(VALUES, VALUES), "aten::equal"),
        (lambda: VALUES[:, [0, 1]], "[]"),
        (lambda: torch.tensor([1.0]), "tensor"),
        (lambda: VALUES.new_tensor([1.0]), "new_tensor"),
        (lambda: _Reads.apply(VALUES.clone().requires_grad_()).sum().backward(), "aten::_local_scalar_dense"),  # pyright: ignore[reportOptionalMemberAccess]
    ],
)
def test_reads_are_found_with_their_line(read: Callable[[], Any], operation: str) -> None:
    with HostReads() as reads:
        read()
    assert [found.operation for found in reads.found] == [operation]
    assert reads.found[0].file == str(Path("tests/train/test_task.py")) and reads.found[0].line > 100


def test_what_the_device_does_alone_is_none() -> None:
    with HostReads() as reads:
        values = VALUES.clone().requires_grad_()
        torch.where(MASK, values, 0.0)[:, 1:].square().mean().backward()
        changed = VALUES.clone()
        changed[MASK] = 0.0  # a fill, in all places
        nn.functional.dropout(changed[torch.arange(2)].to(torch.float64), 0.5)
    assert not reads.found, str(reads)
