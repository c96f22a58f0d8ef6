"""Samples of several data sets as if they were of one."""

from __future__ import annotations

import numpy as np
import pytest

from annotate.fits.speakers import SPEAKERS, SpeakersSettings, read_speakers
from shards.fits import keys_of, make_fit, plan_parts
from shards.reader import SPEECH, ShardReader
from shards.reader_chain import ReaderChain
from talkinghead.derived import Fit
from tests.support.speech_data import build_speech_data

COLUMNS = ("mesh", "pose", "pose_matrix", "valid")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[ShardReader]:
    folder = tmp_path_factory.mktemp("data")
    # Speaker 2 of the first is held out there; speaker 1 of both is one person.
    data = [build_speech_data(folder / "one"), build_speech_data(folder / "two", "more", first=1)]
    return [ShardReader(storage, columns=COLUMNS, at_most=SPEECH) for storage in data]


def test_samples_are_those_of_the_readers_in_order(readers: list[ShardReader]) -> None:
    chain = ReaderChain(readers)
    assert len(chain) == 6 and chain.keys == readers[0].keys + readers[1].keys
    assert [chain[number].key for number in range(6)] == chain.keys
    assert chain.num_frames.tolist() == [chain[number].num_frames for number in range(6)]
    assert chain.speakers == [chain[number].speaker for number in range(6)]
    assert chain.shards.tolist() == [*readers[0].shards, *(2 + readers[1].shards)]
    for number in (-1, 6):
        with pytest.raises(IndexError):
            chain[number]


def test_a_fit_over_a_chain_is_over_all_its_clips(readers: list[ShardReader]) -> None:
    chain = ReaderChain(readers)
    parts = plan_parts(SPEAKERS, chain)
    assert sorted(keys_of(chain, parts)) == sorted(chain.keys)
    both, *each = (
        read_speakers(Fit(sha256="", arrays=make_fit(SPEAKERS, SpeakersSettings(), {}, clips)))
        for clips in (chain, *readers)
    )
    assert list(both.speakers) == ["speaker-0", "speaker-1", "speaker-2"]
    assert both.poses.num_frames == sum(one.poses.num_frames for one in each)
    assert both.poses.num_clips == sum(one.poses.num_clips for one in each)
    frames = np.array([one.poses.num_frames for one in each])
    means = np.stack([one.poses.mean for one in each])
    np.testing.assert_allclose(both.poses.mean, frames @ means / frames.sum(), atol=1e-6)
    for key, rest in zip(both.clips.keys, both.clips.rest, strict=True):
        (own,) = (one for one in each if key in one.clips.keys)
        np.testing.assert_allclose(rest, own.clips.rest[list(own.clips.keys).index(key)])
