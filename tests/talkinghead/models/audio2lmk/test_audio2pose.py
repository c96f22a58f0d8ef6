"""Audio2Pose in training: what each frame attends to, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from talkinghead.models.audio2lmk.audio2pose import (
    Audio2Pose,
    PoseDecoderLayer,
    PositionCode,
    alibi_slopes,
    causal_bias,
    window_mask,
)
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import parameter_hash
from tests.support.small_models import small_pose

TINY = Pretrained("tiny").wav2vec_config()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.one_of(st.none(), st.integers(1, 9)))
def test_causal_bias_by_its_definition(queries: int, earlier: int, context: int | None) -> None:
    keys = queries + earlier
    slopes = alibi_slopes(4)
    bias = causal_bias(slopes, queries, keys, context)
    for query in range(queries):
        for key in range(keys):
            distance = earlier + query - key
            seen = 0 <= distance < (context or keys)
            want = -slopes * distance if seen else torch.full((4,), -torch.inf)
            assert torch.equal(bias[:, query, key], want)


def test_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(4).tolist() == [2.0**-k for k in (2, 4, 6, 8)]
    assert torch.allclose(alibi_slopes(6), torch.tensor([2.0**-k for k in (2, 4, 6, 8, 1, 3)]))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 15), st.integers(0, 5), st.integers(0, 8))
def test_window_mask_by_its_definition(queries: int, keys: int, window: int, first: int) -> None:
    mask = window_mask(queries, keys, window, first)
    want = [[abs(query + first - key) <= window for key in range(keys)] for query in range(queries)]
    assert mask.tolist() == want


def test_position_code_repeats_and_is_the_paper_s() -> None:
    code = PositionCode(6, 10)
    assert torch.equal(code(7, 6), torch.cat([code(7, 3), code(0, 3)]))
    want = torch.tensor(
        [[torch.sin(torch.tensor(4.0)), torch.cos(torch.tensor(4.0)), torch.sin(torch.tensor(4 * 10000 ** (-1 / 3)))]]
    )
    torch.testing.assert_close(code(4, 1)[:, :3], want)


def test_a_layer_is_pytorch_s_decoder_layer() -> None:
    torch.manual_seed(0)
    stock = nn.TransformerDecoderLayer(32, 4, 48, dropout=0.1, batch_first=True).eval()
    ours = PoseDecoderLayer(32, 4, 48, 0.1).eval()
    ours.load_state_dict(stock.state_dict())
    states, memory = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    bias = causal_bias(alibi_slopes(4), 9, 9)
    for window in (0, 2):
        mask = window_mask(9, 9, window)
        want = stock(states, memory, tgt_mask=bias.repeat(2, 1, 1), memory_mask=~mask)
        torch.testing.assert_close(ours(states, memory, bias, mask), want, rtol=1e-5, atol=1e-5)
        if window == 0:
            torch.testing.assert_close(ours(states, memory, bias, None), want, rtol=1e-5, atol=1e-5)


def test_the_short_cut_to_the_own_frame_drops_whole_heads_like_attention() -> None:
    torch.manual_seed(0)
    layer = PoseDecoderLayer(32, 4, 48, 0.5).train()
    attention = layer.multihead_attn
    nn.init.eye_(attention.out_proj.weight)
    memory = torch.randn(1, 200, 32)
    heads = attention.attend_to_own(memory).unflatten(-1, (4, 8))
    values = attention.keys_values(memory)[1].transpose(1, 2)
    dropped = (heads == 0).all(-1)
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(heads[~dropped], 2 * values[~dropped])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 14), st.sampled_from([None, 1, 3]), st.sampled_from([0, 2, None]))
def test_who_sees_what(changed: int, context: int | None, window: int | None) -> None:
    """A pose of the past moves what comes after it, within the layers' reach; speech moves what lies around it."""
    attention = "diagonal" if window is None else "window"
    model = small_pose(TINY, context=context, memory_attention=attention, memory_window=window or 0)
    memory, previous, identity = torch.randn(1, 15, 32), torch.randn(1, 15, 6), torch.tensor([1])
    want = model.decode_known(memory, previous, identity)

    other = previous.clone()
    other[0, changed] += 3
    moved = (model.decode_known(memory, other, identity) != want).any(-1)[0]
    reach = 15 if context is None else 2 * (context - 1) + 1  # each of two layers attends context - 1 frames back
    assert moved.tolist() == [changed <= frame < changed + reach for frame in range(15)]

    other = memory.clone()
    other[0, changed] += 3
    moved = (model.decode_known(other, previous, identity) != want).any(-1)[0]
    side = window or 0
    assert not moved[: max(0, changed - side)].any()
    assert moved[max(0, changed - side) : changed + side + 1].all()


def test_identity_and_scale_count() -> None:
    model = small_pose(TINY, dropout=0.0)
    memory, previous = torch.randn(2, 5, 32), torch.randn(2, 5, 6)
    out = model.decode_known(memory, previous, torch.tensor([0, 0]))
    other = model.decode_known(memory, previous, torch.tensor([0, 3]))
    assert torch.equal(out[0], other[0])
    assert not torch.isclose(out[1], other[1]).any()
    scale = [2.0, 4.0, 8.0, 0.5, 0.25, 1.0]
    scaled = small_pose(TINY, pose_scale=scale)
    got = scaled.decode_known(memory, previous * torch.tensor(scale), torch.tensor([0, 0]))
    torch.testing.assert_close(got, out * torch.tensor(scale))


@pytest.mark.parametrize("window", [0, 3, None])
def test_padding_does_not_reach_the_frames_before_it(window: int | None) -> None:
    attention = "diagonal" if window is None else "window"
    model = small_pose(TINY, memory_attention=attention, memory_window=window or 0)
    samples, previous = torch.randn(2, 8 * 640), torch.randn(2, 8, 6)
    identity = torch.tensor([1, 2])
    want = model(samples[:1, : 5 * 640], previous[:1, :5], identity[:1])
    samples[0, 5 * 640 :] = 0
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])
    out = model(samples, previous, identity, mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:1, :5], want, rtol=1e-4, atol=1e-4)


def test_every_trainable_parameter_gets_a_gradient_also_in_bf16_and_with_checkpointing() -> None:
    for attention in ("window", "diagonal"):
        model = small_pose(TINY, memory_attention=attention, context=4).train()
        model.enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(torch.randn(2, 6400), torch.randn(2, 10, 6), torch.tensor([1, 2]))
        out.float().square().mean().backward()
        without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not without
        assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


def test_a_forward_in_training_repeats_with_the_seed() -> None:
    model = small_pose(TINY).train()
    batch = torch.randn(2, 6400), torch.randn(2, 10, 6), torch.tensor([1, 2])
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model(*batch))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_saving_keeps_every_bit_and_setting(tmp_path: Path) -> None:
    model = small_pose(TINY, context=7, max_step=[1.0] * 6, pose_scale=[5.0] * 6, chunking="restart")
    model.save_pretrained(tmp_path)
    again = Audio2Pose.from_pretrained(tmp_path)
    assert parameter_hash(again) == parameter_hash(model)
    assert (again.context, again.max_step, again.pose_scale) == (7, (1.0,) * 6, (5.0,) * 6)
    assert dict(again.config)["chunking"] == "restart"


def test_blocks_compile_without_graph_breaks() -> None:
    model = small_pose(TINY, context=4)
    batch = torch.randn(1, 6400), torch.randn(1, 10, 6), torch.tensor([1])
    want = model(*batch)
    assert len(model.blocks) == 4
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(*batch), want)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 30}, "multiple of heads"),
        ({"memory_attention": "all"}, "window or diagonal"),
        ({"context": 0}, "context"),
        ({"pose_scale": [1.0] * 5 + [0.0]}, "above 0"),
        ({"smoothing": 4}, "odd"),
        ({"chunking": "jump"}, "continue or restart"),
        ({"position_period": 100}, "position_period"),
        ({"max_step": [1.0]}, "max_step"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small_pose(TINY, **settings)
