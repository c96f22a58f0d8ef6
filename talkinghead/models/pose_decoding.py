"""Poses one after the other: each is decoded from those before it, whose keys and values are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from talkinghead.models.attention_bias import alibi_slopes, causal_bias, window_mask
from talkinghead.models.pose_joints import JointSpreader
from talkinghead.models.pose_step import Hearing, KeyValueCache, LayerStep

if TYPE_CHECKING:
    from talkinghead.models.audio2pose import Audio2Pose

RUN = 256
"""Frames whose speech is turned into keys and values at once."""


@dataclass
class DecoderState:
    """Where decoding stands; give it back to go on with the speech that follows."""

    identity: Tensor
    """`[B]`."""
    steps: list[LayerStep]
    cache: KeyValueCache
    bias: Tensor
    """`[B · H, n, 1]`: bias of self-attention by distance, the newest frame last."""
    spreader: JointSpreader
    memory: Tensor
    """`[B, m, D]`: speech of the frames from `memory_first` on."""
    memory_first: int = 0
    poses: list[Tensor] = field(default_factory=list)
    """The newest decoded poses, `[B, 6]` each."""
    frame: int = 0
    """The next frame to be decoded."""
    position: int = 0
    """Its number since the start, or since what the last joint began with."""


def start(model: Audio2Pose, identity: Tensor) -> DecoderState:
    """The state before the first frame, for identities `[B]`."""
    like = model.pose_map.weight.detach()
    batch, width = len(identity), like.shape[0]
    layers = model.decoder_layers
    longest = model.longest_chunk if model.context is None else model.context
    bias = causal_bias(alibi_slopes(model.heads).to(like.device), 1, longest).transpose(1, 2)
    return DecoderState(
        identity=identity,
        steps=[LayerStep(layer) for layer in layers],
        cache=KeyValueCache((len(layers), batch * model.heads, width // model.heads), model.context, like),
        bias=bias.to(like.dtype).repeat(batch, 1, 1),
        spreader=_spreader(model),
        memory=like.new_zeros(batch, 0, width),
    )


def decode(model: Audio2Pose, memory: Tensor, state: DecoderState, *, final: bool) -> Tensor:
    """Decode on; changes `state`.

    Args:
        model: In evaluation mode.
        memory: `[B, T, D]`, the speech that follows what the state has heard.
        state: Of `start`, or of the call before.
        final: No more speech comes. Otherwise the last frames, which hear speech that is not there yet, wait for the
            next call.

    Returns:
        `[B, frames decoded, 6]`, degrees and centimetres.
    """
    assert not model.training, "decoding is for evaluation mode"
    state.memory = torch.cat([state.memory, memory], dim=1)
    heard = state.memory_first + state.memory.shape[1]
    until = heard if final else max(state.frame, heard - model.memory_window)
    shown: list[Tensor] = []
    while state.frame < until:
        shown += _decode_run(model, state, min(RUN, until - state.frame))
    _forget(model, state)
    return torch.stack(shown, dim=1) if shown else memory.new_zeros(len(memory), 0, 6)


def _decode_run(model: Audio2Pose, state: DecoderState, count: int) -> Iterator[Tensor]:
    window = None if model.diagonal else model.memory_window
    first = state.frame - state.memory_first
    hearings = [Hearing(layer.multihead_attn, state.memory, window, first, count) for layer in model.decoder_layers]
    for frame in range(count):
        joint = model.context is None and state.position == model.longest_chunk
        if joint:
            _prime(model, state)
        pose = _step(model, state, hearings, frame)
        state.poses.append(pose)
        state.frame += 1
        state.position += 1
        yield state.spreader.emit(pose, joint)


def _step(model: Audio2Pose, state: DecoderState, hearings: list[Hearing], frame: int) -> Tensor:
    """One pose `[B, 6]`; `frame` counts in the hearings."""
    previous = state.poses[-1] if state.poses else state.memory.new_zeros(len(state.identity), 6)
    states = model.embed(previous[:, None], state.identity, first=state.position)[:, 0]
    bias = state.bias[:, -state.cache.open_frame() :]
    for number, (step, hearing) in enumerate(zip(state.steps, hearings, strict=True)):
        states = step.run(states, state.cache, number, bias, hearing, frame)
    return model.unmap(states)


def _prime(model: Audio2Pose, state: DecoderState) -> None:
    """Begin a chunk with the last frames of the one before, so that positions stay small and the motion goes on."""
    count = model.restart_frames
    first = state.frame - count - state.memory_first
    known = torch.stack(state.poses[-count - 1 : -1], dim=1)
    states = model.embed(known, state.identity, first=0)
    self_bias = causal_bias(alibi_slopes(model.heads).to(states.device), count, count)
    mask = window_mask(count, state.memory.shape[1], model.memory_window, first, states.device)
    entries: list[tuple[Tensor, Tensor]] = []
    for layer in model.decoder_layers:
        states, keys, values = layer.run(states, state.memory, self_bias, mask)
        entries.append((keys.flatten(0, 1), values.flatten(0, 1)))
    state.cache.fill(entries)
    state.position = count


def _forget(model: Audio2Pose, state: DecoderState) -> None:
    """Drop speech and poses that no later frame needs."""
    past = model.restart_frames if model.context is None else 0
    state.poses = state.poses[-past - 1 :]
    needed = max(state.memory_first, state.frame - past - model.memory_window)
    state.memory = state.memory[:, needed - state.memory_first :].clone()
    state.memory_first = needed


def _spreader(model: Audio2Pose) -> JointSpreader:
    max_step = None if model.max_step is None else model.pose_map.weight.new_tensor(model.max_step)
    return JointSpreader(max_step, frames=max(1, round(model.fps)))


def redecode(model: Audio2Pose, memory: Tensor, identity: Tensor) -> Tensor:
    """What `decode` yields, the plain way: for each pose all frames before it are decoded again, with full masks.

    Args:
        model: In evaluation mode.
        memory: `[B, T, D]`, of the whole speech.
        identity: `[B]`.

    Returns:
        `[B, T, 6]`.
    """
    assert not model.training, "decoding is for evaluation mode"
    slopes = alibi_slopes(model.heads).to(memory.device)
    spreader = _spreader(model)
    poses = [memory.new_zeros(len(memory), 6)]  # the pose before frame 0
    shown: list[Tensor] = []
    first = 0
    for frame in range(memory.shape[1]):
        joint = model.context is None and frame - first == model.longest_chunk
        if joint:
            first = frame - model.restart_frames
        count = frame - first + 1
        states = model.embed(torch.stack(poses[first : frame + 1], dim=1), identity, first=0)
        self_bias = causal_bias(slopes, count, count, model.context)
        mask = window_mask(count, memory.shape[1], model.memory_window, first, memory.device)
        for layer in model.decoder_layers:
            states = layer(states, memory, self_bias, mask)
        poses.append(model.unmap(states[:, -1]))
        shown.append(spreader.emit(poses[-1], joint))
    return torch.stack(shown, dim=1)
