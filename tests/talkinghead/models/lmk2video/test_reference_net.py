"""Reference network: features by name, equal to those of the stock network's transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import reference_net_config
from tests.support.lmk2video_networks import SMALL, draw, small_denoiser, small_reference_net


def test_features_are_what_the_stock_network_attends_to() -> None:
    net = small_reference_net().eval()
    stock = UNet2DConditionModel(
        block_out_channels=SMALL["block_out_channels"],
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=12,
        norm_num_groups=4,
    ).eval()
    found = stock.load_state_dict(net.state_dict(), strict=False)
    assert not found.unexpected_keys and all(
        key.startswith(("conv_norm_out", "conv_out")) for key in found.missing_keys
    )
    seen: dict[str, torch.Tensor] = {}
    for name, module in stock.named_modules():
        if name.endswith("transformer_blocks.0.norm1"):
            module.register_forward_hook(
                lambda _m, _i, output, name=name: seen.update({name[: -len(".norm1")]: output})
            )
    latents, token = draw(2, 4, 8, 12), draw(2, 1, 12, seed=1)
    with torch.no_grad():
        stock(latents, 0, token)
        features = net(latents, token)
        folded = net(latents, token, fold=True)
    assert features.keys() == seen.keys() and len(features) == 7
    for name, feature in features.items():
        torch.testing.assert_close(feature, seen[name])
        torch.testing.assert_close(folded[name], feature, rtol=1e-4, atol=1e-5)


def test_names_are_those_of_the_denoiser_in_the_order_of_computing() -> None:
    net = small_reference_net()
    assert list(net(draw(1, 4, 8, 8), draw(1, 1, 12))) == list(net.transformers())
    assert list(net.transformers()) == list(small_denoiser(motion=True).transformers())


def test_sizes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        net = ReferenceNet(**reference_net_config("sd15"))
    assert sum(value.numel() for value in net.parameters()) == 859_508_800
    assert len(net.transformers()) == 16
    net.freeze_tail()
    assert sum(value.numel() for value in net.parameters() if value.requires_grad) == 840_698_240


def test_only_the_frozen_tail_may_go_without_gradient() -> None:
    net = small_reference_net()
    features = net(draw(2, 4, 8, 8), draw(2, 1, 12))
    torch.stack([feature.square().mean() for feature in features.values()]).sum().backward()
    without = {name for name, value in net.named_parameters() if value.grad is None}
    net.freeze_tail()
    assert without
    assert not without & {name for name, value in net.named_parameters() if value.requires_grad}


def test_begins_with_the_weights_of_a_denoiser() -> None:
    net, denoiser = small_reference_net(), small_denoiser()
    net.load_denoiser(denoiser.state_dict())
    torch.testing.assert_close(net.conv_in.weight, denoiser.conv_in.weight)
    state = denoiser.state_dict()
    del state["conv_in.weight"]
    with pytest.raises(ValueError, match=r"missing or of another shape, such as conv_in\.weight"):
        net.load_denoiser(state)


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    net = small_reference_net().eval()
    net.save_pretrained(tmp_path)
    again = ReferenceNet.from_pretrained(tmp_path)
    latents, token = draw(1, 4, 8, 8), draw(1, 1, 12, seed=1)
    for name, feature in again(latents, token).items():
        torch.testing.assert_close(feature, net(latents, token)[name], rtol=0, atol=0)
    small_denoiser().save_pretrained(tmp_path / "other")
    (tmp_path / "config.json").replace(tmp_path / "other" / "config.json")
    with pytest.raises(ValueError, match=r"are not of the ReferenceNet that its config\.json describes"):
        ReferenceNet.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is no whole ReferenceNet"):
        ReferenceNet.from_pretrained(tmp_path / "nowhere")


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split among num_attention_heads 3"):
        ReferenceNet(**dict(SMALL, num_attention_heads=3))
    with pytest.raises(ValueError, match="norm_num_groups 5"):
        ReferenceNet(**dict(SMALL, norm_num_groups=5))
    with pytest.raises(ValueError, match="one entry for each"):
        ReferenceNet(**dict(SMALL, attention_levels=(True,)))
