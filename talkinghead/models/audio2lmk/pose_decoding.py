"""Poses one after the other: each is decoded from those before it, whose keys and values are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoder import alibi_slopes, causal_bias, window_mask
from talkinghead.models.audio2lmk.pose_step import Hearing, KeyValueCache, LayerStep
from talkinghead.models.audio2lmk.seams import JointSpreader, restart_lengths
from talkinghead.models.speech.encoder import frame_rate, num_frames
from talkinghead.models.speech.long_speech import encode_long
from talkinghead.timebase import SAMPLE_RATE

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


@torch.no_grad()
def decode(
    model: Audio2Pose,
    memory: Tensor,
    identity: int | Tensor,
    *,
    state: DecoderState | None = None,
    final: bool = True,
) -> tuple[Tensor, DecoderState]:
    """Poses, each decoded from those before it.

    Keys and values are kept, so a frame costs the same however many went before (with `context`, or up to
    `longest_chunk` frames). Without `context`, longer speech is decoded in chunks that continue each other,
    whatever `chunking` says: chunks that restart begin with their speech, see `generate`.

    Args:
        model: In evaluation mode.
        memory: `[B, T, D]` of `Audio2Pose.encode`; with a state, what follows the memory given before.
        identity: A number for all, or `[B]`, below `num_identities`; a state keeps the one it began with.
        state: Of the call before; it is changed.
        final: No more speech comes. Otherwise the last `memory_window` frames, which hear speech that is not there
            yet, wait for the next call.

    Returns:
        Poses `[B, frames, 6]` as the network gives them, degrees and centimetres, and the state.

    Raises:
        ValueError: There is no such identity.
    """
    assert not model.training, "decoding is for evaluation mode"
    state = state or start(model, model.identities(identity, len(memory)))
    state.memory = torch.cat([state.memory, memory], dim=1)
    heard = state.memory_first + state.memory.shape[1]
    until = heard if final else max(state.frame, heard - model.memory_window)
    shown: list[Tensor] = []
    while state.frame < until:
        shown += _decode_run(model, state, min(RUN, until - state.frame))
    _forget(model, state)
    poses = torch.stack(shown, dim=1) if shown else memory.new_zeros(len(memory), 0, 6)
    return poses, state


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


@torch.no_grad()
def generate(
    model: Audio2Pose, samples: Tensor, identity: int, *, chunking: Literal["continue", "restart"] | None = None
) -> Tensor:
    """The poses of a whole recording of any length, in bounded memory.

    Args:
        model: In evaluation mode.
        samples: `[N]`, 16 kHz, normalised over the recording.
        identity: Below `num_identities`.
        chunking: Instead of the model's own.

    Returns:
        `[T, 6]`, T = `num_frames(N, fps)`, as the network gives them; see `Audio2Pose.finish`.

    Raises:
        ValueError: No samples, no such identity, or chunks that do not begin on a whole sample.
    """
    if model.context is not None or (chunking or model.chunking) == "continue":
        memory = encode_long(model.encode, samples, model.fps)
        return decode(model, memory[None], identity)[0][0]
    per_chunk = model.restart_frames * SAMPLE_RATE / frame_rate(model.fps)
    if per_chunk.denominator != 1:
        raise ValueError(f"{model.restart_frames} frames at {model.fps} fps are no whole number of samples")
    lengths = restart_lengths(len(samples), int(per_chunk))
    frames = [model.restart_frames] * (len(lengths) - 1)
    frames.append(num_frames(len(samples), model.fps) - sum(frames))
    chunks = zip(samples.split(lengths), frames, strict=True)
    return torch.cat([decode(model, model.encode(part[None], count), identity)[0][0] for part, count in chunks])


@torch.no_grad()
def redecode(model: Audio2Pose, memory: Tensor, identity: int | Tensor) -> Tensor:
    """What `decode` yields, the plain way: for each pose all frames before it are decoded again, with full masks.

    Args:
        model: In evaluation mode.
        memory: `[B, T, D]`, of the whole speech.
        identity: A number for all, or `[B]`, below `num_identities`.

    Returns:
        `[B, T, 6]`.
    """
    assert not model.training, "decoding is for evaluation mode"
    identities = model.identities(identity, len(memory))
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
        states = model.embed(torch.stack(poses[first : frame + 1], dim=1), identities, first=0)
        self_bias = causal_bias(slopes, count, count, model.context)
        mask = window_mask(count, memory.shape[1], model.memory_window, first, memory.device)
        for layer in model.decoder_layers:
            states = layer(states, memory, self_bias, mask)
        poses.append(model.unmap(states[:, -1]))
        shown.append(spreader.emit(poses[-1], joint))
    return torch.stack(shown, dim=1)
