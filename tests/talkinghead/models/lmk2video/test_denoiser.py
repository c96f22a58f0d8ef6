"""Denoiser: equal to the stock networks where they compute the same, with conditions as plain arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.sizes import denoiser_config
from tests.support.lmk2video_networks import SMALL, draw, inputs, rows, small_denoiser, small_reference_net

STOCK: dict[str, Any] = {
    "block_out_channels": SMALL["block_out_channels"],
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield
    dist.destroy_process_group()


def _stock(model: Denoiser) -> UNet2DConditionModel:
    """Equal network of `diffusers`, with the same weights."""
    stock = UNet2DConditionModel(
        **STOCK,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    stock.load_state_dict(model.state_dict())
    return stock.eval()


def test_equals_the_stock_network_without_conditions() -> None:
    model = small_denoiser().eval()
    stock = _stock(model)
    # 9 and 6 cannot be halved evenly all the way: the way up must return to the sizes of the way down.
    for size in ((8, 12), (9, 6)):
        given = inputs(2, 1, size)
        with torch.no_grad():
            want = cast(Any, stock)(given["latents"][:, 0], given["timestep"], given["token"]).sample
            found = model(given["latents"], given["timestep"], given["token"])[:, 0]
        torch.testing.assert_close(found, want)


def test_conditions_enter_where_hooks_put_them_into_the_stock_network() -> None:
    """Pose enters after `conv_in` and after each level of the way down, but not in the skip states; reference tokens
    follow the own ones, for keys and values."""
    model = small_denoiser().eval()
    stock = _stock(model)
    given = inputs(2, 1)
    pose = [value[:, 0] for value in given["pose"]]
    stock.conv_in.register_forward_hook(lambda _m, _i, output: output + pose[0])

    def add(added: torch.Tensor, _module: Any, _inputs: Any, output: Any) -> Any:
        return output[0] + added, output[1]

    for index, block in enumerate(stock.down_blocks):
        block.register_forward_hook(functools.partial(add, pose[index + 1]))
    for name, feature in given["reference"].items():
        stock.get_submodule(f"{name}.attn1").register_forward_pre_hook(
            lambda _m, args, kwargs, extra=feature: (
                args,
                kwargs | {"encoder_hidden_states": torch.cat([args[0], extra], dim=1)},
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        want = cast(Any, stock)(given["latents"][:, 0], given["timestep"], given["token"]).sample
        torch.testing.assert_close(model(**given)[:, 0], want, **CLOSE)


def test_equals_the_stock_motion_network_on_one_frame() -> None:
    # One frame only: on several, the stock network normalises over all of them at once.
    model = small_denoiser(motion=True).eval()
    stock = UNetMotionModel(
        **STOCK,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
    ).eval()
    stock.load_state_dict(model.state_dict())
    given = inputs(2, 1)
    with torch.no_grad():
        want = stock(given["latents"].transpose(1, 2), given["timestep"], given["token"]).sample.transpose(1, 2)
        found = model(given["latents"], given["timestep"], given["token"])
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("condition", ["reference", "pose", "token", "timestep"])
def test_every_condition_counts(condition: str) -> None:
    model, given = small_denoiser().eval(), inputs()
    other = inputs(seed=50) | {"timestep": given["timestep"] + 5}
    with torch.no_grad():
        change = model(**{**given, condition: other[condition]}) - model(**given)
    assert change.abs().mean() > 1e-3


def test_every_scale_of_the_pose_and_every_reference_feature_counts() -> None:
    model, given = small_denoiser().eval(), inputs()
    with torch.no_grad():
        plain = model(**given)
        for index in range(len(given["pose"])):
            pose = [torch.zeros_like(value) if n == index else value for n, value in enumerate(given["pose"])]
            assert not torch.allclose(model(**dict(given, pose=pose)), plain)
        for name, feature in given["reference"].items():
            reference = given["reference"] | {name: torch.zeros_like(feature)}
            assert not torch.allclose(model(**dict(given, reference=reference)), plain)


@pytest.mark.parametrize("motion", [False, True])
def test_samples_do_not_touch_each_other(motion: bool) -> None:
    model, given = small_denoiser(motion=motion).eval(), inputs()
    with torch.no_grad():
        together = model(**given)
        alone = [model(**rows(given, slice(index, index + 1))) for index in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_frames_meet_in_the_motion_modules_only() -> None:
    given = inputs()
    other = given | {"latents": given["latents"].clone()}
    other["latents"][:, 0] += 1
    with torch.no_grad():
        still, moving = small_denoiser().eval(), small_denoiser(motion=True).eval()
        torch.testing.assert_close(still(**given)[:, 1:], still(**other)[:, 1:], **CLOSE)
        assert not torch.allclose(moving(**given)[:, 1:], moving(**other)[:, 1:], atol=1e-3)


def test_new_motion_modules_change_nothing() -> None:
    still, given = small_denoiser().eval(), inputs()
    moving = Denoiser(**dict(SMALL, motion=True, motion_heads=2)).eval()
    moving.load_spatial(still.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(moving(**given), still(**given))
    assert len(list(moving.motion_parameters())) == 26 * 10


def test_dropped_samples_are_plain_self_attention() -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    dropped = torch.tensor([True, False])
    with torch.no_grad():
        mixed = model(**given, dropped=dropped)
        without = model(**dict(given, reference=None))
        torch.testing.assert_close(mixed[:1], without[:1], **CLOSE)
        torch.testing.assert_close(mixed[1:], model(**given)[1:], **CLOSE)


def test_dropped_samples_give_their_reference_no_gradient() -> None:
    model, given = small_denoiser(), inputs()
    leaves = {name: value.clone().requires_grad_() for name, value in given["reference"].items()}
    model(**dict(given, reference=leaves), dropped=torch.tensor([True, False])).square().mean().backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert not leaf.grad[0].any() and leaf.grad[1].any()


def test_keys_and_values_computed_once_and_the_folded_token_change_nothing() -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    kept = model.project_reference(given["reference"])
    with torch.no_grad():
        plain = model(**given)
        torch.testing.assert_close(model(**dict(given, reference=kept)), plain, **CLOSE)
        torch.testing.assert_close(model(**given, fold=True), plain, **CLOSE)
    assert not any(value.requires_grad for pair in kept.values() for value in pair)


def test_calls_leave_nothing_after() -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    before = model.state_dict()
    with torch.no_grad():
        first = model(**given)
        model(**inputs(1, 2, (4, 4), seed=9))
        model(**dict(given, reference=None, pose=None))
        torch.testing.assert_close(model(**given), first, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _gradients(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def _pair() -> tuple[torch.nn.ModuleDict, Callable[[dict[str, Any]], torch.Tensor]]:
    """Reference network and denoiser trained together, as in stage 1, and their loss."""
    both = torch.nn.ModuleDict({"net": small_reference_net(), "denoiser": small_denoiser(motion=True)})

    def loss(given: dict[str, Any]) -> torch.Tensor:
        features = both["net"](given["latents"][:, 0], given["token"])
        dropped = given["timestep"] > 300
        return both["denoiser"](**dict(given, reference=features), dropped=dropped).square().mean()

    return both, loss


def test_activation_checkpointing_changes_no_gradient() -> None:
    both, loss = _pair()
    both.eval()  # frozen parts stay in evaluation: checkpointing must work there too
    given = inputs()
    want = _gradients(both, lambda: loss(given))
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return checkpoint(*args, **kwargs, use_reentrant=False)

    for part in both.values():
        assert isinstance(part, torch.nn.Module)
        part.enable_gradient_checkpointing(counted)  # pyright: ignore[reportCallIssue]
    found = _gradients(both, lambda: loss(given))
    assert calls == sum(len(part.blocks) for part in both.values())  # pyright: ignore[reportArgumentType]
    assert found.keys() == want.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, want[name])


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    both, loss = _pair()
    given = inputs()
    want = _gradients(both, lambda: loss(given))
    both.zero_grad()
    for index in range(2):
        (loss(rows(given, slice(index, index + 1))) / 2).backward()
    for name, value in both.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, want[name], **CLOSE)


def test_sharded_blocks_compute_the_same(one_rank: None) -> None:
    both, loss = _pair()
    given = inputs()
    want = _gradients(both, lambda: loss(given))
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for part in both.values():
        for block in part.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            fully_shard(block, mesh=mesh)
        fully_shard(part, mesh=mesh)
    loss(given).backward()
    found = {name: value.grad for name, value in both.named_parameters() if value.grad is not None}
    assert found.keys() == want.keys()
    for name, grad in found.items():
        assert isinstance(grad, DTensor)
        torch.testing.assert_close(grad.full_tensor(), want[name], **CLOSE)


def test_blocks_compile_without_a_break() -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    with torch.no_grad():
        want = model(**given, dropped=torch.tensor([True, False]))
        # One of each kind: tracing takes seconds.
        for block in {type(block): block for block in model.blocks}.values():
            block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
        found = model(**given, dropped=torch.tensor([True, False]))
    torch.testing.assert_close(found, want)


def test_half_precision_comes_close() -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    with torch.no_grad():
        want = model(**given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(**given)
        half = _cast(given, torch.bfloat16)
        model.bfloat16()
        low = model(**half)
    assert low.dtype == torch.bfloat16
    for found in (mixed, low):
        assert (found.float() - want).norm() / want.norm() < 0.05


def _cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "latents": given["latents"].to(dtype),
        "timestep": given["timestep"],
        "token": given["token"].to(dtype),
        "reference": {name: value.to(dtype) for name, value in given["reference"].items()},
        "pose": [value.to(dtype) for value in given["pose"]],
    }


def test_sizes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        still = Denoiser(**denoiser_config("sd15", motion=False))
        moving = Denoiser(**denoiser_config("sd15", motion=True))
    assert sum(value.numel() for value in still.parameters()) == 859_520_964
    assert sum(value.numel() for value in moving.parameters()) == 1_312_730_244
    motion = [value for _, value in moving.motion_parameters()]
    assert (len(motion), sum(value.numel() for value in motion)) == (546, 453_209_280)
    assert sum(name.endswith("proj_out.weight") for name, _ in moving.motion_parameters()) == 21


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    model, given = small_denoiser(motion=True).eval(), inputs()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(Denoiser.from_pretrained(tmp_path)(**given), model(**given), rtol=0, atol=0)


def test_wrong_conditions_are_named() -> None:
    model, given = small_denoiser(motion=True, motion_frames=3).eval(), inputs()
    for wrong, text in (
        ({"latents": draw(2, 4, 4, 8, 12), "pose": None}, "4 frames at once, and the motion modules know 3"),
        ({"token": draw(2, 2, 12)}, "token must be"),
        ({"dropped": torch.tensor([True])}, r"dropped must be \[2\]"),
        ({"pose": given["pose"][:2]}, "2 pose features for 3 levels"),
        ({"pose": inputs(size=(8, 8))["pose"]}, "guidance images must be of the size"),
        ({"reference": {"mid": draw(2, 4, 16)}}, "is of a network of another shape"),
        ({"reference": inputs(1)["reference"]}, "1 references for 2 samples"),
    ):
        with pytest.raises(ValueError, match=text):
            model(**{**given, **wrong})
