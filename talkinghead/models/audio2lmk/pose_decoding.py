"""Autoregressive decoding: each pose is decoded from those before it, whose keys and values are kept.

The arithmetic is that of `audio2pose`, arranged for one frame, whose time goes into reading weights and into the number
of calls. So weights are laid out as a product with one vector reads them fastest, attention is written as batched
products of matrices with vectors, and the keys and values of the speech are made for many frames at once.

Letters:
    B recordings, T frames, S frames of speech, n poses in sight, D width of the decoder, H heads; G = B · H, W = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose, PoseDecoderLayer, alibi_slopes, causal_bias, window_mask
from talkinghead.models.speech.encoder import encode_long, frame_rate, num_frames
from talkinghead.timebase import SAMPLE_RATE

BLOCK = 256
"""Number of frames whose speech is turned into keys and values at once."""
FIRST_CAPACITY = 256
"""Number of frames that an unbounded cache has room for at first."""


@dataclass
class DecoderState:
    """State of decoding between two calls; pass it in again to go on with the speech that follows."""

    identity: Tensor
    """Identity numbers `[B]`."""
    steps: list[LayerStep]
    cache: KeyValueCache
    bias: Tensor
    """Bias of self-attention by distance, `[G, n, 1]`, the newest frame last."""
    spreader: SeamSpreader
    memory: Tensor
    """Memory of speech of the frames from `memory_first` on, `[B, S, D]`."""
    memory_first: int = 0
    poses: list[Tensor] = field(default_factory=list)
    """Newest decoded poses, `[B, 6]` each."""
    frame: int = 0
    """Number of the next frame to be decoded."""
    position: int = 0
    """Position of that frame since the start or, after a seam, in its chunk."""


def start(model: Audio2Pose, identity: Tensor) -> DecoderState:
    """State before the first frame, for identities `[B]`."""
    like = model.pose_map.weight.detach()
    batch, width = len(identity), like.shape[0]
    layers = model.decoder_layers
    longest = model.longest_chunk if model.context is None else model.context
    bias = causal_bias(alibi_slopes(model.heads).to(like.device), 1, longest).transpose(1, 2)  # [H, n, 1]
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
    model: Audio2Pose, memory: Tensor, identity: int | Tensor, *, state: DecoderState | None = None, final: bool = True
) -> tuple[Tensor, DecoderState]:
    """Poses, each decoded from those before it.

    Keys and values are kept, so a frame costs the same however many went before (with `context`, or up to
    `longest_chunk` frames). Without `context`, longer speech is decoded in chunks that continue each other, whatever
    `chunking` says: only `generate` restarts, as that also encodes the speech of each chunk alone.

    Args:
        model: Model in evaluation mode.
        memory: Memory of speech `[B, T, D]` (`Audio2Pose.encode`); with a state, the part after the one given before.
        identity: Identity number for all, or `[B]`, below `num_identities`; a state keeps its first.
        state: State that the call before returned; changed in place.
        final: True when no more speech comes. Otherwise the last `memory_window` frames, which attend to speech that is
            not there yet, wait for the next call.

    Returns:
        Poses `[B, frames, 6]` as the network gives them, degrees and centimetres, and the state.

    Raises:
        ValueError: There is no such identity.
    """
    assert not model.training, "decoding is for evaluation mode"
    # The speech so far, and the frame up to which poses can be decoded from it.
    state = state or start(model, model.identities(identity, len(memory)))
    state.memory = torch.cat([state.memory, memory], dim=1)
    known = state.memory_first + state.memory.shape[1]
    until = known if final else max(state.frame, known - model.memory_window)
    # Pose after pose, the speech prepared block by block.
    shown: list[Tensor] = []
    while state.frame < until:
        shown += _decode_block(model, state, min(BLOCK, until - state.frame))
    # Drop the speech and poses that no later frame needs, so that memory stays bounded.
    past = model.restart_frames if model.context is None else 0
    state.poses = state.poses[-past - 1 :]
    needed = max(state.memory_first, state.frame - past - model.memory_window)
    state.memory = state.memory[:, needed - state.memory_first :].clone()
    state.memory_first = needed
    poses = torch.stack(shown, dim=1) if shown else memory.new_zeros(len(memory), 0, 6)
    return poses, state


def _decode_block(model: Audio2Pose, state: DecoderState, count: int) -> Iterator[Tensor]:
    """Poses `[B, 6]` of the next `count` frames, with seams spread."""
    # Keys and values of the speech, for all frames of the block and every layer.
    window = None if model.diagonal else model.memory_window
    first = state.frame - state.memory_first
    speech = [SpeechAttention(layer, state.memory, window, first, count) for layer in model.decoder_layers]
    for frame in range(count):
        # A full chunk is followed by one that begins with its last frames: neither positions nor cache grow further.
        seam = model.context is None and state.position == model.longest_chunk
        if seam:
            _prime(model, state)
        # One frame through all layers.
        previous = state.poses[-1] if state.poses else state.memory.new_zeros(len(state.identity), 6)
        states = model.embed(previous[:, None], state.identity, first=state.position)[:, 0]  # [B, D]
        bias = state.bias[:, -state.cache.open_frame() :]  # [G, n, 1]
        for number, step in enumerate(state.steps):
            states = step(states, state.cache, number, bias, speech[number], frame)
        pose = model.unmap(states)
        state.poses.append(pose)
        state.frame += 1
        state.position += 1
        yield state.spreader.emit(pose, seam)


def _prime(model: Audio2Pose, state: DecoderState) -> None:
    """Begin a chunk with the last frames of the one before, so that positions stay small and the motion goes on."""
    # The inputs of these frames: the poses one frame earlier, at positions from 0.
    count = model.restart_frames
    first = state.frame - count - state.memory_first
    known = torch.stack(state.poses[-count - 1 : -1], dim=1)  # [B, count, 6]
    states = model.embed(known, state.identity, first=0)
    self_bias = causal_bias(alibi_slopes(model.heads).to(states.device), count, count)
    mask = window_mask(count, state.memory.shape[1], model.memory_window, first, states.device)
    # All in one pass, of which only the keys and values are wanted; the poses are known.
    entries: list[tuple[Tensor, Tensor]] = []
    for layer in model.decoder_layers:
        states, keys, values = layer.run(states, state.memory, self_bias, mask)
        entries.append((keys.flatten(0, 1), values.flatten(0, 1)))
    state.cache.fill(entries)
    state.position = count


def _spreader(model: Audio2Pose) -> SeamSpreader:
    max_step = None if model.max_step is None else model.pose_map.weight.new_tensor(model.max_step)
    return SeamSpreader(max_step, frames=max(1, round(model.fps)))


@torch.no_grad()
def generate(
    model: Audio2Pose, samples: Tensor, identity: int, *, chunking: Literal["continue", "restart"] | None = None
) -> Tensor:
    """Poses of a whole recording of any length, in bounded memory.

    Args:
        model: Model in evaluation mode.
        samples: Audio samples `[N]`, 16 kHz, normalised over the recording.
        identity: Identity number, below `num_identities`.
        chunking: Way of decoding long speech in place of the model's own.

    Returns:
        `[T, 6]`, T = `num_frames(N, fps)`, as the network gives them, before `Audio2Pose.finish`.

    Raises:
        ValueError: No samples, no such identity, or chunks that do not begin on a whole sample.
    """
    if model.context is not None or (chunking or model.chunking) == "continue":
        memory = encode_long(model.encode, samples, model.fps)
        return decode(model, memory[None], identity)[0][0]
    return torch.cat(list(restarted_parts(model, samples, identity)))


@torch.no_grad()
def restarted_parts(model: Audio2Pose, samples: Tensor, identity: int) -> Iterator[Tensor]:
    """Poses of `generate` with `restart`, chunk by chunk: chunks know nothing of each other, not even the speech.

    Args:
        model: Model in evaluation mode, without `context`.
        samples: Audio samples `[N]`, as for `generate`.
        identity: Identity number.

    Yields:
        Poses `[n, 6]` of a chunk.

    Raises:
        ValueError: No such identity, or chunks that do not begin on a whole sample.
    """
    per_chunk = model.restart_frames * SAMPLE_RATE / frame_rate(model.fps)
    if per_chunk.denominator != 1:
        raise ValueError(f"{model.restart_frames} frames at {model.fps} fps are no whole number of samples")
    lengths = restart_lengths(len(samples), int(per_chunk))
    frames = [model.restart_frames] * (len(lengths) - 1)
    frames.append(num_frames(len(samples), model.fps) - sum(frames))
    for part, count in zip(samples.split(lengths), frames, strict=True):
        yield decode(model, model.encode(part[None], count), identity)[0][0]


def restart_lengths(total: int, length: int) -> list[int]:
    """Lengths of AniPortrait's chunks, `total` when added up: `length` each, and the last one takes the rest."""
    whole, rest = divmod(total, length)
    return [total] if whole == 0 else [length] * (whole - 1) + [length + rest]


@torch.no_grad()
def redecode(model: Audio2Pose, memory: Tensor, identity: int | Tensor) -> Tensor:
    """Poses of `decode` for the whole speech, the plain way: for each pose all frames before it are computed again."""
    assert not model.training, "decoding is for evaluation mode"
    identities = model.identities(identity, len(memory))
    slopes = alibi_slopes(model.heads).to(memory.device)
    spreader = _spreader(model)
    poses = [memory.new_zeros(len(memory), 6)]  # the pose before frame 0
    shown: list[Tensor] = []
    first = 0
    for frame in range(memory.shape[1]):
        seam = model.context is None and frame - first == model.longest_chunk
        if seam:
            first = frame - model.restart_frames
        count = frame - first + 1
        states = model.embed(torch.stack(poses[first : frame + 1], dim=1), identities, first=0)
        self_bias = causal_bias(slopes, count, count, model.context)
        mask = window_mask(count, memory.shape[1], model.memory_window, first, memory.device)
        for layer in model.decoder_layers:
            states = layer(states, memory, self_bias, mask)
        poses.append(model.unmap(states[:, -1]))
        shown.append(spreader.emit(poses[-1], seam))
    return torch.stack(shown, dim=1)


# --- one layer, one frame ---------------------------------------------------------------------------------------------


class KeyValueCache:
    """Keys and values of past frames, of all layers, in one block of memory.

    A frame's entries are written once and stay until the block is full; then those in sight move to its beginning
    (bounded context), or the block doubles. So a frame's cost does not depend on the number of frames before it, and
    attention reads one slice in order of time.

    Args:
        shape: Sizes (layers, G, W).
        context: Number of frames in sight, the newest included; None: all.
        like: Tensor that gives precision and device.
    """

    def __init__(self, shape: tuple[int, int, int], context: int | None, like: Tensor) -> None:
        layers, groups, width = shape
        self._context = context
        capacity = FIRST_CAPACITY if context is None else 2 * context
        self._block = like.new_zeros(layers, 2, groups, capacity, width)  # 2: keys, values
        self._end = 0

    def open_frame(self) -> int:
        """Make room for one more frame; returns the number of frames in its sight, itself included."""
        if self._end == self._block.shape[3]:
            self._make_room()
        self._end += 1
        return self._end - self._first()

    def write(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest frame's keys and values `[2, G, W]`; returns those in sight, `[G, n, W]` each."""
        self._block[layer, :, :, self._end - 1] = keys_values
        keys, values = self._block[layer, :, :, self._first() : self._end]
        return keys, values

    def fill(self, entries: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begin anew with several frames: keys and values of each layer, `[G, n, W]` each."""
        self._end = entries[0][0].shape[1]
        while self._block.shape[3] < self._end:
            self._make_room()
        for layer, (keys, values) in enumerate(entries):
            self._block[layer, 0, :, : self._end] = keys
            self._block[layer, 1, :, : self._end] = values

    def _first(self) -> int:
        return 0 if self._context is None else max(0, self._end - self._context)

    def _make_room(self) -> None:
        if self._context is None:
            self._block = torch.cat([self._block, torch.zeros_like(self._block)], dim=3)
            return
        kept = self._context - 1
        self._block[..., :kept, :] = self._block[..., self._end - kept : self._end, :]  # capacity 2·context: disjoint
        self._end = kept


class SpeechAttention:
    """One layer's attention to the speech, for a block of frames.

    Args:
        layer: Layer with the weights.
        memory: Memory of speech `[B, S, D]`.
        window: Number of frames that a frame attends to on each side of its own; None: to its own only.
        first: Index in the memory of the block's first frame.
        count: Number of frames of the block.
    """

    def __init__(self, layer: PoseDecoderLayer, memory: Tensor, window: int | None, first: int, count: int) -> None:
        self._attention = attention = layer.multihead_attn
        self._window = window
        if window is None:
            self._own = attention.attend_to_own(memory[:, first : first + count])  # [B, count, D]: the whole output
            return
        begin = max(0, first - window)
        keys, values = attention.keys_values(memory[:, begin : first + count + window])
        self._keys, self._values = keys.flatten(0, 1), values.flatten(0, 1)  # [G, s, W]
        self._offset = first - begin

    def at(self, frame: int, states: Tensor) -> Tensor:
        """Output of the attention for one frame of the block, from the layer's states `[B, D]` → `[B, D]`."""
        if self._window is None:
            return self._own[:, frame]
        at = self._offset + frame
        near = slice(max(0, at - self._window), at + self._window + 1)
        width = states.shape[-1]
        weight, bias = self._attention.in_proj_weight[:width], self._attention.in_proj_bias[:width]
        queries = functional.linear(states, weight, bias).view(len(self._keys), -1, 1)  # [G, W, 1]
        mixed = _attend(queries, self._keys[:, near], self._values[:, near], None)
        return self._attention.out_proj(mixed.view_as(states))


class LayerStep:
    """One layer for one frame; dropout is off.

    Args:
        layer: Layer whose weights are copied where another layout reads faster: a step does not follow their changes.
    """

    def __init__(self, layer: PoseDecoderLayer) -> None:
        self._layer = layer
        # Wide outputs: the product with one vector reads a transposed matrix about 1.5 times as fast.
        self._packed = layer.self_attn.in_proj_weight.detach().t().contiguous().t()
        self._widen = layer.linear1.weight.detach().t().contiguous().t()

    def __call__(
        self, states: Tensor, cache: KeyValueCache, number: int, bias: Tensor, speech: SpeechAttention, frame: int
    ) -> Tensor:
        """The layer's output for the states of one frame, `[B, D]` → `[B, D]`.

        The frame is open in `cache`, where the layer has `number`; `bias` is `[G, n, 1]` by distance, the frame itself
        last; `frame` is its index in `speech`.
        """
        layer, attention = self._layer, self._layer.self_attn
        batch, width = states.shape
        packed = functional.linear(states, self._packed, attention.in_proj_bias)
        parts = packed.view(batch, 3, attention.heads, -1).transpose(0, 1).flatten(1, 2)  # [3, G, W]
        mixed = _attend(parts[0, :, :, None], *cache.write(number, parts[1:]), bias)
        states = layer.norm1(states + attention.out_proj(mixed.view(batch, width)))  # self-attention
        states = layer.norm2(states + speech.at(frame, states))  # speech
        inner = functional.relu(functional.linear(states, self._widen, layer.linear1.bias))  # feed-forward
        return layer.norm3(states + layer.linear2(inner))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of one frame: `[G, W, 1]`, keys and values `[G, n, W]`, bias of scores `[G, n, 1]` → `[G, 1, W]`."""
    scale = queries.shape[1] ** -0.5
    scores = torch.bmm(keys, queries) * scale if bias is None else torch.baddbmm(bias, keys, queries, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=1).transpose(1, 2), values)


class SeamSpreader:
    """Removes the jumps of a sequence of poses at its seams.

    Where a step at a seam is larger than allowed, the excess is taken back at once and given again over the following
    frames: pose[k] - excess · (1 - (k - seam) / frames).

    Args:
        max_step: Largest allowed step per number, `[6]`; None: the largest step since the last seam.
        frames: Number of frames over which an excess is spread.
    """

    def __init__(self, max_step: Tensor | None, frames: int) -> None:
        self._max_step = max_step
        self._frames = frames
        self._last: Tensor | None = None
        self._largest: Tensor | None = None
        self._excess: Tensor | None = None
        self._age = 0

    def emit(self, pose: Tensor, seam: bool) -> Tensor:
        """Pose `[B, 6]` to output for a decoded one; at a `seam` it was decoded from another past than the last one."""
        # Steps are measured on the decoded poses, which the excess does not distort.
        if self._last is not None:
            step = pose - self._last
            if seam:
                self._begin(step)
            elif self._max_step is None:
                self._largest = step.abs() if self._largest is None else torch.maximum(self._largest, step.abs())
        self._last = pose
        if self._excess is None:
            return pose
        shown = pose - self._excess * (1.0 - self._age / self._frames)
        self._age += 1
        if self._age >= self._frames:
            self._excess = None
        return shown

    def _begin(self, step: Tensor) -> None:
        limit = self._largest if self._max_step is None else self._max_step
        if limit is None:
            return
        # An earlier excess that has not faded yet goes on as part of this one.
        rest = 0.0 if self._excess is None else self._excess * (1.0 - self._age / self._frames)
        self._excess = step - torch.minimum(torch.maximum(step, -limit), limit) + rest
        self._age = 0
        self._largest = None
