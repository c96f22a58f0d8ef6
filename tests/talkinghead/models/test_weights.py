"""The models' blocks shard as the trainer shards them: the plain model's gradients come out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.weights import Pretrained
from tests.support.small_models import small_pose
from train.config import ParallelConfig
from train.trainer.parallel import parallelise

TINY = Pretrained("tiny").wav2vec_config()


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("which", ["mesh", "pose"])
def test_sharded_blocks_compute_the_same(one_rank: None, which: str) -> None:
    torch.manual_seed(0)
    if which == "mesh":
        model = Audio2Mesh(TINY, hidden=16, num_vertices=3)
        nn.init.normal_(model.out_fn.weight)
        batch = torch.randn(2, 6400), 10
    else:
        model = small_pose(TINY, context=4)
        batch = torch.randn(2, 6400), torch.randn(2, 10, 6), torch.tensor([1, 2])
    model.eval()
    model(*batch).square().mean().backward()
    want = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    config = ParallelConfig(strategy="fsdp2", activation_checkpointing=True)
    model = parallelise(model, config, torch.device("cpu"), 1)
    sharded = [part for part in model.modules() if isinstance(part, FSDPModule)]
    assert sharded == [model, *model.blocks] and len(model.blocks) >= 2
    model(*batch).square().mean().backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == want.keys()
    for name, grad in found.items():
        assert isinstance(grad, DTensor)
        torch.testing.assert_close(grad.full_tensor(), want[name])
