"""Constants that are kept on each device."""

from __future__ import annotations

import torch

from talkinghead.models.device_constant import DeviceConstant


def test_a_device_gets_its_copy_once() -> None:
    constant = DeviceConstant(torch.arange(3.0))
    there = constant.on(torch.device("meta"))
    assert there.device.type == "meta" and constant.on(torch.device("meta")) is there
    assert torch.equal(constant.on(torch.device("cpu")), torch.arange(3.0))
    assert constant.on(torch.device("cpu")) is constant.on(torch.device("cpu"))


def test_one_that_was_first_asked_for_in_inference_serves_training() -> None:
    constant = DeviceConstant(torch.arange(3.0))
    meta = torch.device("meta")
    with torch.inference_mode():
        assert not constant.on(meta).is_inference()
    weights = torch.ones(3, device="meta", requires_grad=True)
    (weights * constant.on(meta)).sum().backward()
    assert weights.grad is not None
