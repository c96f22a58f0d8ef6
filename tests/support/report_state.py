"""State of a data set for the report, made by hand."""

from __future__ import annotations

import dataclasses

from orchestration.report.state import DataState
from talkinghead.schema import SampleIndex
from tests.support.report_data import Clip, Piece, data_state


def make_state(clips: list[Clip], **changes: object) -> DataState:
    """The state of the clips with an index of their packed pieces (no files)."""
    packed = [(clip, piece) for clip in clips for piece in clip.made if piece.kind in ("kept", "filtered")]
    index = [index_row(clip, piece, number) for number, (clip, piece) in enumerate(packed)]
    return dataclasses.replace(data_state(clips, index, ["v1"]), **changes)


def index_row(clip: Clip, piece: Piece, number: int) -> SampleIndex:
    """A row without members."""
    keep = piece.kind == "kept"
    return SampleIndex(
        key=piece.key,
        clip_key=clip.key,
        dataset=clip.dataset,
        shard=0,
        ordinal=number,
        num_frames=piece.num_frames,
        split="train",
        split_group=clip.key,
        person=None,
        licence="",
        keep=keep,
        reason=None if keep else piece.reason,
        reason_score=None if keep else piece.score,
        scores=dict(piece.scores or {}),
    )
