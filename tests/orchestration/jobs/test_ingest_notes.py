"""Notes on a clip are known when its ingest ends: its record has them, for samples and rejected pieces alike."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from ingest.sample import make_sample
from orchestration import outcomes
from orchestration.jobs.ingest import Source, run_ingest
from orchestration.units.records import UnitRecord
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from tests.support.latent_data import in_process


def as_transport_stream(video: Path, path: Path) -> bytes:
    """A video as a transport stream, whose packets are those of the video."""
    with av.open(str(video)) as source, av.open(str(path), "w", format="mpegts") as sink:
        streams = {stream.index: sink.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                sink.mux(packet)
    return path.read_bytes()


def test_the_record_of_a_clip_has_its_notes(tmp_path: Path) -> None:
    """Two joined streams, whose clock begins anew: each part is a piece of its own, which is noted on both."""
    video = sorted(make_sample(tmp_path / "sample").glob("*.mp4"))[0]
    stream = as_transport_stream(video, tmp_path / "one.ts")
    for folder, name, data in (("plain", "a.mp4", video.read_bytes()), ("joined", "b.ts", stream * 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
    storage, plain = Storage(tmp_path / "data"), Storage(tmp_path / "other")
    run_ingest(in_process(storage), Source(source=str(tmp_path / "joined")), (), resolve_face_model())
    [record] = outcomes.ingest_results(storage).values()
    assert isinstance(record, UnitRecord) and record.file and len(record.samples) == 2
    # They are those of the clip info, so that neither the index nor the report needs to read media.
    infos = {}
    for sample in record.samples:
        [member] = [member for member in sample.members if member.suffix == "json"]
        infos[sample.key] = json.loads(storage.read_range(record.file, member.offset, member.size))
    assert all(outcomes.clip_notes(record, key) == info["notes"] for key, info in infos.items())
    assert all(any("the clock jumps once" in note for note in info["notes"]) for info in infos.values())
    # Rejected pieces have them, too.
    run_ingest(in_process(storage), Source(source=str(tmp_path / "joined")), ("min_frames=1500",), resolve_face_model())
    [rejected] = outcomes.ingest_results(storage).values()
    assert isinstance(rejected, UnitRecord) and len(rejected.rejected) == 2
    assert all(outcomes.clip_notes(rejected, piece.key) for piece in rejected.rejected)
    # Clips without anything unusual have records as before.
    run_ingest(in_process(plain), Source(source=str(tmp_path / "plain")), (), resolve_face_model())
    [record] = outcomes.ingest_results(plain).values()
    assert isinstance(record, UnitRecord) and outcomes.NOTES not in record.details


def test_a_folder_of_sound_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"RIFF")
    storage = Storage(tmp_path / "data")
    with pytest.raises(ValueError, match=r"holds 1 sound file \(.wav\) and no video: clips are cut out of videos"):
        run_ingest(in_process(storage), Source(source=str(tmp_path / "speech")), (), resolve_face_model())
    assert not storage.list("catalog")
