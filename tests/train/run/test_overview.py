"""The overview of a run: at the beginning, in the middle, at the end, and of a broken one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from infer.evaluation.evaluation_result import write_evaluations
from infer.evaluation.motion_evaluation import TrueClip, evaluate_pose
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.neutral import NeutralMesh
from talkinghead.motion.speakers import Speaker, Speakers
from talkinghead.provenance import hash_bytes
from train.run.overview import flat, newest_validation, write_overview
from train.run.plots import ValidationFigures

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are closed in order; collects sources, links and anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            target = {"src": self.sources, "href": self.links, "id": self.ids}.get(name)
            if target is not None and value is not None:
                target.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, tag


def outline(page: Path) -> Outline:
    parsed = Outline()
    parsed.feed(page.read_text())
    assert parsed.open == []
    return parsed


def begin(run: Path) -> Path:
    run.mkdir(parents=True)
    recipe = {"config": {"wav2vec": "tiny", "persons": []}, "train": {"steps": 200, "optimizer": {"name": "adam"}}}
    config = {
        "format": 1,
        "task": "audio2pose",
        "recipe_name": "tiny",
        "recipe": recipe,
        "data": "data/<set>",
        "annotation": {"version": "v2"},
        "weights": {"wav2vec": {"kind": "folder", "name": "wav2vec2-base", "sha256": hash_bytes(b"encoder")}},
        "libraries": {"torch": "2.13.0"},
    }
    (run / "config.json").write_text(json.dumps(config))
    return run


def train(run: Path) -> None:
    rows = [{"step": step, "loss": 1 / step, "samples_per_s": 9.5, "data_wait": 0.021} for step in range(10, 101, 10)]
    rows += [{"step": step, "validation/pose_l1": 2.0} for step in (50, 100)]
    rows += [{"step": 33, "event": "skipped", "what": "the loss", "keys": ["folder-x", "folder-<y>"]}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def validate(run: Path, step: int, off: float) -> None:
    folder = run / "validation" / f"step-{step:08d}"
    pose = np.cumsum(np.random.default_rng(0).normal(size=(60, 6)), axis=0)
    clip = TrueClip(
        key="folder-c",
        speaker="p",
        valid=np.ones(60, bool),
        audio=np.zeros(60 * 640, np.float32),
        pose_matrix=matrix_from_pose(pose),
    )
    figures = ValidationFigures(folder, lambda trace, path: path.write_bytes(b"video"))
    found = evaluate_pose(lambda one: np.full((60, 6), off), [clip], on_clip=figures)
    write_evaluations(folder, {"held-out clips": found})


def test_the_first_moment(tmp_path: Path) -> None:
    page = write_overview(begin(tmp_path / "run"))
    assert page == tmp_path / "run" / "index.html"
    text = page.read_text()
    assert "not a step yet" in text
    assert "Not exported yet" in text
    assert "data/&lt;set&gt;" in text
    assert "optimizer.name" in text
    assert not outline(page).sources


def test_a_whole_run(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    train(run)
    validate(run, 50, 9.0)
    validate(run, 100, 1.0)
    (run / "validation" / "step-00000150" / "weights").mkdir(parents=True)  # of a validation that still runs
    (run / "pretrained_model").mkdir()
    (run / "pretrained_model" / "model.safetensors").write_bytes(b"weights")
    neutral = NeutralMesh(mesh=np.zeros((468, 3), np.float32), num_frames=7, rule="lip opening")
    offset = np.zeros((468, 3), np.float32)
    Speakers([Speaker(name="Ann & Bob", neutral=neutral, mean_offset=offset, num_frames=70)]).save(run / "task")
    page = write_overview(run)
    parsed, text = outline(page), page.read_text()
    video = "validation/step-00000100/folder-c.mp4"
    assert [source for source in parsed.sources if not source.startswith("data:image/png;base64,")] == [video]
    assert (run / video).exists()
    anchors = {link[1:] for link in parsed.links if link.startswith("#")}
    assert anchors == {"validation", "curves", "skipped", "provenance", "settings"} <= set(parsed.ids)
    assert len(parsed.sources) == 1 + 1 + 1 + 1 + 2  # video, trace, validation curve, loss, two small curves
    newest = newest_validation(run)
    assert newest is not None
    assert newest.step == 100
    for wanted in (
        "Validation at step 100", "step 100 of 200", "zero pose", "shifted truth", "pose rotation error",
        "1 clip, 60 frames (2 s), 0 without a face", "1 step was", "folder-&lt;y&gt;", "2.1 %",
        hash_bytes(b"weights"), hash_bytes(b"encoder"), "wav2vec2-base", "Ann &amp; Bob", "the audio has no onsets",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert not re.search(r"https?://", text), "the page needs nothing from outside"


def test_a_broken_run(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    validate(run, 50, 0.0)
    (run / "validation" / "step-00000050" / "validation.json").write_text('{"format": 7}')
    (run / "metrics.jsonl").write_text('{"step": 5, "loss": NaN}\n{"st')
    (run / "task").mkdir()
    (run / "task" / "speakers.json").write_text("{")
    text = write_overview(run).read_text()
    assert "is no result of an evaluation" in text
    assert "1 line of metrics.jsonl cannot be read" in text
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        write_overview(run)
    with pytest.raises(ValueError, match="there is no run"):
        write_overview(tmp_path / "nowhere")


def test_flat_settings() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [2]}) == {"a.b.c": 1, "a.d": None, "e": [2]}
