"""A unit's input is the clip that its plan names, whole and undamaged, or says what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestration.jobs.media import MediaSample, read_clip
from orchestration.units.unit import Unit
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.schema import media_shard_name
from tests.support.latent_data import LENGTHS, build, clip_frames, clip_key


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build(tmp_path_factory.mktemp("media") / "data")


def unit(storage: Storage, number: int) -> Unit:
    row = ShardReader(storage, split=None, kept=False).find(clip_key(number)).index
    file, members = media_shard_name(row.shard), tuple(row.media)
    sample = MediaSample(key=row.key, num_frames=row.num_frames, file=file, members=members, content_sha256="")
    return Unit(
        job="test", key=row.key, pkey="0" * 16, function="", payload=sample.payload(), source=row.key, time_limit_s=9.0
    )


def test_a_clip_is_read_as_it_was_packed(storage: Storage) -> None:
    clip = read_clip(storage, Unit.from_json(unit(storage, 1).to_json()), "mp4", "wav")
    frames = list(clip.frames())
    assert clip.info.key == clip_key(1) and frames[0].shape == clip_frames(1)[0].shape
    clip.check_length(len(frames))
    with pytest.raises(ValueError, match=f"has 3 frames, its json says {LENGTHS[1]}"):
        clip.check_length(3)
    sound = clip.sound()
    assert sound.shape == (LENGTHS[1] * 640,) and sound.dtype == np.float32 and not sound.any()
    cut = replace(clip, members={**clip.members, "wav": clip.members["wav"][:-2]})
    with pytest.raises(ValueError, match="samples for 9 frames"):
        cut.sound()


def test_another_clip_in_its_place_is_refused(storage: Storage) -> None:
    one, other = unit(storage, 1), unit(storage, 2)
    with pytest.raises(ValueError, match=f"holds {clip_key(2)} where {clip_key(1)} should be"):
        read_clip(storage, replace(one, payload=other.payload))


def test_a_damaged_packet_is_unreadable_media(storage: Storage) -> None:
    """It has the cause that all unreadable media have, so that no job tries it again."""
    clip = read_clip(storage, unit(storage, 3), "mp4")
    mp4 = bytes(clip.members["mp4"])
    start = mp4.index(b"mdat") + 4
    stop = start - 8 + int.from_bytes(mp4[start - 8 : start - 4], "big")
    broken = mp4[:start] + b"\xff" * (stop - start) + mp4[stop:]
    damaged = replace(clip, members={**clip.members, "mp4": memoryview(broken)})
    with pytest.raises(UnreadableMediaError, match=f"{clip_key(3)}.mp4 is damaged") as error:
        list(damaged.frames())
    assert error.value.cause == "undecodable"


@pytest.mark.parametrize("job", ["ingest", "annotate", "pack", "derive_worker", "fit"])
def test_functions_that_units_name_are_there(job: str) -> None:
    from orchestration.units.unit import _job_function

    assert callable(_job_function(f"orchestration.jobs.{job}:run"))
