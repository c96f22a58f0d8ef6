"""Which buffers follow a training, and in which precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from talkinghead.models.running_statistics import BatchNorm, RunningStatistics, SpectralLinear


def test_layers_that_stay_in_evaluation_mode_stand_still() -> None:
    torch.manual_seed(0)
    module = nn.ModuleList([BatchNorm(3), SpectralLinear(4, 5), BatchNorm(3), SpectralLinear(4, 5)]).train()
    for frozen in module[2:]:
        frozen.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    statistics = RunningStatistics(module)
    for norm in (module[0], module[2]):
        norm(torch.randn(8, 3) + 2)
    statistics.note()
    statistics.move(torch.tensor(True))
    moved = {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"0", "1"}
    assert statistics and not RunningStatistics(module.eval())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_it_is_torchs_in_either_precision(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3).to(kind), nn.BatchNorm1d(3).to(kind)
    x = torch.randn(8, 3, 5, dtype=kind) * 3 + 1
    statistics = RunningStatistics(ours)
    torch.testing.assert_close(ours(x), theirs(x))
    statistics.note()
    statistics.move(torch.tensor(True))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
