"""The bench: that it compares like with like and reports what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from orchestration import ROOT
from orchestration.bench import timing
from orchestration.bench.job_rows import run_command, snapshot, written_bytes
from orchestration.bench.material import Material, find_source
from orchestration.bench.row import Row, read_rows, show_rows, write_rows
from orchestration.bench.timing import busy_neighbour, in_turns, measure, measured_apart, one_core
from orchestration.jobs.media import MediaSample
from talkinghead.files.storage import Storage
from talkinghead.sampletar import pack_samples, write_sample
from talkinghead.schema import MEDIA_MEMBERS
from tests.support.listening import parent_of, process_tree


def _row(ours: float, baseline: float | None, better: Literal["higher", "lower"] = "higher", goal: float = 2.0) -> Row:
    return Row(name="x", ours=ours, baseline=baseline, unit="frames/s", better=better, goal=goal, note="n")


def test_a_row_judges_its_ratio() -> None:
    assert _row(5.0, 2.0).ratio == 2.5 and _row(5.0, 2.0).met
    assert not _row(3.0, 2.0).met
    assert _row(1.0, 2.0, "lower", 0.5).met and not _row(1.1, 2.0, "lower", 0.5).met
    assert _row(1.0, None).ratio is None and _row(1.0, None).met is None


def test_rows_are_written_and_shown(tmp_path: Path) -> None:
    skipped = replace(_row(1.0, 3.0), name="far", ours=None, note="skipped: no store is installed")
    rows = [_row(10.123456, 3.0), _row(1.0, 3.0, "lower", 0.1), _row(1.0, None), skipped]
    write_rows(tmp_path / "new" / "bench.json", rows, {"source": "embedded sample"})
    assert json.loads((tmp_path / "new" / "bench.json").read_text())["source"] == "embedded sample"
    first, missed, alone, absent = read_rows(tmp_path / "new" / "bench.json")
    assert {"name", "ours", "baseline", "ratio", "unit", "goal", "note", "met"} <= first.keys()
    assert (first["ours"], first["ratio"], first["goal"], first["met"]) == (10.12, 3.374, ">= 2", True)
    assert (missed["goal"], missed["met"]) == ("<= 0.1", False)
    assert (alone["baseline"], alone["ratio"], alone["met"]) == (None, None, None)
    assert (absent["ours"], absent["ratio"], absent["met"]) == (None, None, None)
    console = Console(record=True, width=120, file=(tmp_path / "shown").open("w"))
    show_rows(rows, console)
    text = console.export_text()
    assert "10.12" in text and "3.37" in text
    assert "far: skipped: no store is installed" in text.splitlines()


def test_competitors_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    now = [1000.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def competitor(name: str, seconds: list[float]):
        def run(turn: int) -> None:
            calls.append((name, turn))
            now[0] += seconds[turn]

        return run

    costs = in_turns({"a": competitor("a", [4.0, 0.25, 0.5]), "b": competitor("b", [0.0, 2.0, 2.0])}, 3)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert costs["a"].wall == 0.5 and costs["b"].wall == 2.0


def test_cpu_time_counts_threads_not_waiting() -> None:
    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    assert measure(work).cpu >= 0.05
    slept = measure(lambda: time.sleep(0.5))
    assert slept.cpu < slept.wall / 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_one_core_is_one_core_and_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), one_core():
        assert len(os.sched_getaffinity(0)) == 1
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


def children() -> set[int]:
    """Process ids of this process's children."""
    return {process for process in process_tree(os.getpid()) if parent_of(process) == os.getpid()}


def test_a_neighbour_computes_until_the_block_ends() -> None:
    before = children()
    with pytest.raises(RuntimeError), busy_neighbour():
        (neighbour,) = children() - before
        used = Path(f"/proc/{neighbour}/stat")
        deadline = time.monotonic() + 240
        while int(used.read_text().rsplit(")", 1)[1].split()[11]) < 20:  # 0.2 s
            assert time.monotonic() < deadline
            time.sleep(0.05)
        raise RuntimeError
    assert not Path(f"/proc/{neighbour}").exists()


def test_a_neighbour_ends_with_a_bench_that_is_killed() -> None:
    code = (
        "import os, signal; from pathlib import Path; from orchestration.bench.timing import busy_neighbour\n"
        "with busy_neighbour():\n"
        "    print(Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    deadline = time.monotonic() + 240
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_measured_apart_has_the_threads_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import json, os, sys; print('x'); print(json.dumps([os.environ.get('OMP_NUM_THREADS'), *sys.argv[1:]]))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert measured_apart("told", "a") == ["1", "a"]
    assert measured_apart("told", threads=True) == [None]
    with pytest.raises(ValueError, match="-m absent failed"):
        measured_apart("absent")


def test_library_output_goes_to_the_log(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from orchestration.bench.timing import library_output_in\n"
        "with library_output_in(Path(sys.argv[1])) as terminal:\n"
        "    os.write(2, b'noise'); os.write(1, b'chatter'); print('shown', file=terminal)\n"
        "print('result')"
    )
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", code, log], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "shown\n")
    assert log.read_bytes() == b"noisechatter"


def test_written_bytes_are_those_of_new_and_replaced_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, size in (("kept", 1000), ("folder/replaced", 200), ("gone", 30)):
        (tmp_path / name).write_bytes(bytes(size))
    before = snapshot(tmp_path)
    assert written_bytes({}, before) == 1230 and written_bytes(before, before) == 0
    (tmp_path / "gone").unlink()
    (tmp_path / "other").write_bytes(bytes(200))
    (tmp_path / "other").rename(tmp_path / "folder" / "replaced")  # same size, other file
    (tmp_path / "new").write_bytes(bytes(7))
    assert written_bytes(before, snapshot(tmp_path)) == 207


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="report failed"):
        run_command("report", "--data", str(tmp_path / "nothing"))


def test_a_source_must_be_a_folder(tmp_path: Path) -> None:
    assert find_source(tmp_path, tmp_path).folder == tmp_path
    with pytest.raises(ValueError, match="no folder"):
        find_source(tmp_path / "absent", tmp_path)


@pytest.fixture
def material(tmp_path: Path) -> Material:
    """Three samples of random bytes in unit tars."""
    storage = Storage(tmp_path / "data")
    noise = np.random.default_rng(0)
    samples = []
    for number, size in enumerate((30_000, 70_000, 50_000)):
        contents = {suffix: noise.bytes(size) for suffix in MEDIA_MEMBERS}
        key, file = f"folder-{number}", f"units/{number}.tar"
        storage.write(file, pack_samples([(key, contents)]))
        with (tmp_path / "scratch").open("wb") as sink:
            members = tuple(write_sample(sink, 0, key, contents))
        samples.append(MediaSample(key=key, num_frames=50, content_sha256="", file=file, members=members))
    return Material(storage, samples, samples[:2])


def test_packing_and_reading_do_the_same_work_on_both_sides(material: Material, tmp_path: Path) -> None:
    from orchestration.bench import shard_rows
    from shards.reader import ShardReader

    copies = shard_rows.copy_material(material, tmp_path / "copies", 2 << 20)
    assert copies.size >= 2 << 20 and len(copies.samples) % len(material.samples) == 0
    packed = shard_rows.pack_row(copies, 1)
    read = shard_rows.read_row(copies, 1)
    assert packed.ratio and read.ratio and packed.goal_text == ">= 0.6" and read.goal_text == ">= 1.2"
    ours = ShardReader(copies.storage, split=None)
    theirs = [tmp_path / "copies" / "webdataset0" / f"clips-{number:06d}.tar" for number in range(len(copies.plan))]
    written = list(shard_rows.read_with_webdataset([str(path) for path in theirs]))
    assert [sample["__key__"] for sample in written] == ours.keys
    for number, sample in enumerate(written):
        members = ours[number].members(*MEDIA_MEMBERS)
        assert all(bytes(members[suffix]) == sample[suffix] for suffix in MEDIA_MEMBERS)


def test_both_engines_decode_the_same_clips_windows_and_source(tmp_path: Path) -> None:
    from orchestration.bench import decode_rows
    from talkinghead.media.decord_frames import decode_clip
    from talkinghead.media.encode import encode_mp4
    from talkinghead.media.encoder_settings import EncoderSettings
    from tests.support.damaged_packets import moving_scene

    storage = Storage(tmp_path / "data")
    samples = []
    for number, length in enumerate((40, 12)):  # one is shorter than a window
        mp4 = encode_mp4(moving_scene(length), 256, 256, EncoderSettings(preset="ultrafast"))
        key, contents = f"folder-{number}", {"json": b"{}", "mp4": mp4, "wav": b""}
        storage.write(f"{number}.tar", pack_samples([(key, contents)]))
        with (tmp_path / "scratch").open("wb") as sink:
            members = tuple(write_sample(sink, 0, key, contents))
        samples.append(
            MediaSample(key=key, num_frames=length, content_sha256="", file=f"{number}.tar", members=members)
        )
    (tmp_path / "source").mkdir()
    rows = decode_rows.decode_rows(Material(storage, samples, samples), tmp_path / "source", 1)
    assert [row.name for row in rows] == ["decode_clip", "decode_clip_plain", "decode_window", "decode_source"]
    assert all(row.ours and row.baseline for row in rows)
    work = ("52 frames", "52 frames", "112 frames", "40 frames")
    assert all(frames in row.note for frames, row in zip(work, rows, strict=True))
    clip = storage.read_range("0.tar", samples[0].members[1].offset, samples[0].members[1].size)
    plain = np.stack(list(decode_rows.decode_plainly(bytes(clip))))
    assert np.array_equal(plain, np.stack(list(decode_clip(bytes(clip))))), "the same pixels are compared"


def test_the_original_way_saves_four_files_a_frame(media: Path, shared: Path, tmp_path: Path) -> None:
    import av

    from orchestration.bench.mediapipe_loops import image_loop, write_images
    from talkinghead.face.model import load_official

    with av.open(str(media / "video" / "video-retalking_face_3.mp4")) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(3), container.decode(video=0), strict=False)
        ]
    images = write_images({"clip": frames}, tmp_path / "frames")
    image_loop(load_official(shared / "models" / "face_landmarker.task"), images, tmp_path / "out")
    saved = sorted((tmp_path / "out" / "clip").iterdir())
    shapes = {path.name.partition("_")[2]: np.load(path).shape for path in saved}
    assert len(saved) == 12
    assert shapes == {
        "landmarks.npy": (478, 3),
        "mesh.npy": (468, 3),
        "matrix.npy": (4, 4),
        "blendshapes.npy": (52,),
    }


def test_a_training_step_is_compared_with_itself() -> None:
    import torch

    from orchestration.bench import video_rows

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    row = video_rows._training(2, 1)
    torch.set_num_threads(threads)
    assert row.ours and row.baseline and row.goal_text == "<= 0.9" and "same weights" in row.note


@pytest.mark.slow
def test_the_whole_bench_on_the_embedded_sample(tmp_path: Path) -> None:
    from ingest.sample import make_sample

    out = tmp_path / "bench.json"
    arguments = ["-o", str(out), "--source", str(make_sample(tmp_path / "source")), "--scratch", str(tmp_path / "tmp")]
    small = ["--frames", "150", "--mebibytes", "16", "--repeats", "1"]
    command = [sys.executable, "-m", "orchestration.bench", *arguments, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(out)
    names = {row["name"]: row for row in read_rows(out)}
    assert {
        "annotate_cpu", "annotate_wall_2_workers", "annotate_litert_vs_video_loop", "video_to_annotation", "pack",
        "decode_clip", "decode_clip_plain", "decode_window", "decode_source",
        "read_stage1_local", "read_stage2_local", "read_stage1_store", "read_stage2_store", "read_stage1_requests",
        "read_stage2_requests", "read_stage1_size", "read_stage2_size", "latents",
        "read_shuffled", "rerun", "reannotate_bytes", "video_flops", "stage1_step", "stage2_step", "window_step",
        "video_time_60s", "video_memory_60s", "animate_busy_neighbour", "stage1_busy_neighbour",
        "annotate_busy_neighbour",
    } <= names.keys()  # fmt: skip
    assert all(row["ours"] > 0 for row in names.values())
    assert all("against" in row["note"] or "the baseline" in row["note"] for row in names.values())
    assert names["reannotate_bytes"]["ratio"] < 1 and names["rerun"]["ratio"] < 1
    assert list((tmp_path / "tmp").iterdir()) == []
