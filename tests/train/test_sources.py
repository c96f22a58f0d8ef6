"""Weights that a training begins with: filled in strictly, every tensor accounted for."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from train.sources import Source, check_fits, fill, warn_of_settings

WHOLE = Source(what="weights")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": nn.Linear(3, 2), "head": nn.Linear(2, 1)})


def weights() -> dict[str, Tensor]:
    return {name: value + 1 for name, value in network().state_dict().items()}


def test_a_whole_module_and_a_part_of_it(caplog: pytest.LogCaptureFixture) -> None:
    module, found = network(), weights()
    before = module.get_submodule("encoder").get_parameter("weight")
    with caplog.at_level(logging.INFO):
        fill(module, found, "RUN", WHOLE)
    assert all(torch.equal(value, found[name]) for name, value in module.state_dict().items())
    assert module.get_submodule("encoder").get_parameter("weight") is before, "in place"
    assert "RUN: 4 tensors of the module, none left over" in caplog.text
    part = Source(what="encoder", part="encoder", may_miss="bias")
    with caplog.at_level(logging.INFO):
        fill(module, {"weight": torch.zeros(2, 3)}, "FILE", part)
    assert not before.any() and torch.equal(module.state_dict()["encoder.bias"], found["encoder.bias"])
    assert "1 tensors of encoder, none left over; 1 new ones begin with first weights (bias)" in caplog.text


def spoilt(name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {key: item for key, item in (weights() | {name: value}).items() if item is not None}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoilt("head.bias", None), r"RUN are not those of this model: they lack head\.bias"),
        (spoilt("tail.bias", torch.zeros(1)), r"they have tail\.bias besides"),
        (spoilt("head.weight", torch.zeros(1, 3)), r"head\.weight is \[1, 3\] there and \[1, 2\] here; set the sizes"),
        (spoilt("head.bias", torch.tensor([torch.nan])), r"NaN or infinite numbers \(head\.bias\)"),
        ({"other": torch.zeros(1)}, r"lack encoder\.weight, encoder\.bias, head\.weight and 1 more and have other"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(found: dict[str, Tensor], words: str) -> None:
    module = network()
    with pytest.raises(ValueError, match=words):
        fill(module, found, "RUN", WHOLE)
    assert all(torch.equal(value, network().state_dict()[name]) for name, value in module.state_dict().items())
    with torch.device("meta"):
        empty = network()
    with pytest.raises(ValueError, match=words):
        check_fits(empty, found, "RUN", WHOLE)


def test_other_settings_are_told(caplog: pytest.LogCaptureFixture) -> None:
    there = {"context": None, "width": 3, "scale": [1, 2], "_version": 1, "gone": 2}
    warn_of_settings(there, {"context": 125, "width": 3, "scale": (1, 2), "_version": 2}, "RUN")
    assert caplog.messages == ["the weights in RUN were made with other settings: context None there and 125 here"]
