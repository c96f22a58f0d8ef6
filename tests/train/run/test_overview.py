"""The overview of a run: at the beginning, in the middle, at the end, and of a broken one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

from infer.evaluation.evaluation_result import write_evaluations
from infer.evaluation.motion_evaluation import TrueClip, evaluate_pose
from talkinghead.motion.neutral import NeutralMesh
from talkinghead.motion.speakers import Speaker, Speakers
from talkinghead.provenance import hash_bytes
from tests.support.motions import a_motion
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
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
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
    clip = TrueClip(key="folder-c", speaker="p", audio=np.zeros(60 * 640, np.float32), motion=a_motion(60))
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


HOSTILE = """'"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}${"""


def hostile(value: Any) -> Any:
    """The same with every text and every name, but those that the page looks up, made hostile."""
    if isinstance(value, dict):
        return {name: hostile(item) for name, item in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [*map(hostile, value)] + ([HOSTILE] if all(isinstance(item, str) for item in value) else [])
    return HOSTILE if isinstance(value, str) else value


def test_nothing_that_a_stranger_wrote_is_markup(tmp_path: Path) -> None:
    run = begin(tmp_path / ("run " + HOSTILE.replace("/", "")))
    train(run)
    validate(run, 100, 1.0)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps(hostile(config) | {"weights": {HOSTILE: hostile({"name": "", "sha256": ""})}})
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{HOSTILE: 1.0, f"validation/{HOSTILE}": 2.0, "step": row["step"]} | row for row in rows]
    rows += [{"step": 90, "event": "skipped", "what": HOSTILE, "keys": [HOSTILE]}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run / "validation" / "step-00000100"
    result = json.loads((folder / "validation.json").read_text())
    for evaluation in result["evaluations"]:
        evaluation |= {"title": HOSTILE, "protocol": HOSTILE, "notes": [HOSTILE]}
        for clip in evaluation["clips"]:
            clip["key"] = HOSTILE
        for subject in evaluation["subjects"]:
            subject |= {"name": HOSTILE}
            for metric in subject["results"]:
                metric |= {"unit": HOSTILE, "reason_unavailable": HOSTILE, "per_clip": {HOSTILE: 1.0}}
    (folder / "validation.json").write_text(json.dumps(result))
    name = HOSTILE.replace("/", "")
    (folder / f"javascript:{name}.mp4").write_bytes(b"video")
    (folder / f"{name}.png").write_bytes(b"image")
    Path(os.fsdecode(os.fsencode(folder) + b"/not \xff UTF-8.mp4")).write_bytes(b"video")
    (run / "task").mkdir()
    row = {"name": HOSTILE, "identity": 0, "num_frames": 3, "neutral_num_frames": 2}
    (run / "task" / "speakers.json").write_text(json.dumps({"speakers": [row, HOSTILE, {"name": HOSTILE}]}))
    (run / "task" / "statistics.json").write_text(json.dumps({HOSTILE: [HOSTILE, 1.0]}))
    (run / "pretrained_model").mkdir()
    (run / "pretrained_model" / f"{name}.safetensors").write_bytes(b"weights")

    page = write_overview(run)
    parsed = outline(page)
    assert "script" not in parsed.tags and not [name for name in parsed.attributes if name.startswith("on")]
    assert parsed.attributes <= {
        "alt", "aria-label", "charset", "class", "content", "controls", "href", "id", "lang", "name", "playsinline",
        "preload", "role", "src", "style", "title",
    }  # fmt: skip
    text = page.read_text()
    assert "&lt;script&gt;" in text and "<script" not in text and "{{ 7 * 7 }}" in text, "shown as it is"
    # Media are files next to the page, and nothing else is loaded.
    beside = [at for at in (*parsed.sources, *parsed.links) if not at.startswith(("data:image/png;base64,", "#"))]
    assert len(beside) == 6 and all(at.startswith("validation/step-00000100/") and ":" not in at for at in beside)
    assert all((run / os.fsdecode(unquote_to_bytes(at))).is_file() for at in beside)


@pytest.mark.parametrize("name", ["a.png", "folder"])
def test_no_file_from_elsewhere_gets_into_the_page(tmp_path: Path, name: str) -> None:
    """The page is passed on, and a link in RUN leads anywhere."""
    run = begin(tmp_path / "run")
    validate(run, 50, 0.0)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.png").write_bytes(b"private")
    target = tmp_path / "private" / "a.png" if name == "a.png" else tmp_path / "private"
    (run / "validation" / "step-00000050" / name).symlink_to(target)
    with pytest.raises(ValueError, match="is a link to"):
        write_overview(run)
    assert not (run / "index.html").exists()


def of_speakers(run: Path) -> None:
    (run / "task").mkdir()
    (run / "task" / "speakers.json").write_text('{"speakers": {"a": 1}}')


def of_statistics(run: Path) -> None:
    (run / "task").mkdir()
    (run / "task" / "statistics.json").write_text("[" * 100_000)


def of_a_large_plot(run: Path) -> None:
    os.truncate(next((run / "validation" / "step-00000050").glob("*.png")), 1 << 40)


def of_many_plots(run: Path) -> None:
    for number in range(300):
        (run / "validation" / "step-00000050" / f"{number}.png").write_bytes(b"plot")


def of_huge_figures(run: Path) -> None:
    rows = [
        {"step": step, "loss": value, "$\\frac{$": value} for step, value in ((1, 1e308), (2, -1e308), (2**53 - 1, 1))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("damage", [of_speakers, of_statistics, of_a_large_plot, of_many_plots, of_huge_figures])
def test_files_of_another_kind_are_left_out(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = begin(tmp_path / "run")
    validate(run, 50, 0.0)
    damage(run)
    page = write_overview(run)
    assert outline(page).tags and page.stat().st_size < 10 << 20
    assert ("too large for a plot" in page.read_text()) == (damage is of_a_large_plot)


@pytest.mark.parametrize(
    "change",
    [
        {"task": None, "recipe": {"train": {"steps": "many"}}},
        {"annotation": [1]},
        {"weights": [1]},
        {"weights": {"a": "b"}},
        {"libraries": 3},
        {"recipe": {"train": {"steps": 0}}},
    ],
)
def test_a_config_of_another_kind_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    run = begin(tmp_path / "run")
    train(run)
    (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | change))
    try:
        page = write_overview(run)
    except ValueError as error:
        assert str(run) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    else:
        outline(page)


def test_flat_settings() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [2]}) == {"a.b.c": 1, "a.d": None, "e": [2]}


def test_damaged_checkpoints_and_weights_of_validated_steps_are_shown(tmp_path: Path) -> None:
    run = begin(tmp_path / "a run ü")
    event = {"step": 4, "event": "damaged", "folder": "damaged-step-00000006", "defect": "<file> is not as it was"}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 1.0}) + "\n" + json.dumps(event) + "\n")
    for step in (3, 5):
        (run / "weights" / f"step-0000000{step}").mkdir(parents=True)
        (run / "weights" / f"step-0000000{step}" / "w.safetensors").write_bytes(bytes(1000 * step))
    (run / "weights" / "best").write_text("step-00000003\n")
    page = write_overview(run).read_text()
    outline(run / "index.html")
    assert "(&lt;file&gt; is not as it was): the training went on from step 4 instead" in page
    assert "checkpoints/damaged-step-00000006 was set aside" in page
    rows = re.findall(r'<td class="file">(weights/.*?)</td><td class="num">(.*?)</td>', page)
    assert rows == [("weights/step-00000003 <strong>the best</strong>", "3 KB"), ("weights/step-00000005", "5 KB")]


def test_what_is_watched_is_on_the_page(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1 / step,
            "loss/t000-249": 2 / step,
            "loss/t250-499": None if step == 50 else 1 / step,
            "network_gradient_norm/<b>": 1.0,
            "network_gradient_norm/head $x_": 2.0,
            "mfu": 0.412,
            "data_wait": 0.1,
            "all_reduce": 0.2,
        }
        for step in range(10, 101, 10)
    ]
    rows += [{"step": step, "held_out/loss": 0.123, "held_out/loss/t000-249": 2.0} for step in (50, 100)]
    keys = [f"folder-{number}" for number in range(30)]
    rows += [{"step": 40 + n, "event": "alarm", "what": f"loss {n} <is> large", "keys": keys} for n in range(25)]
    replaced = {"slot": 3, "key": "folder-bad", "replacement": "folder-good", "reason": "cut <off>"}
    rows += [{"step": 70, "event": "replaced"} | replaced]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_overview(run)
    text, parsed = page.read_text(), outline(page)
    assert {"curves", "alarms", "replaced"} <= set(parsed.ids) and "skipped" not in parsed.ids
    assert {"#alarms", "#replaced"} <= set(parsed.links)
    assert "<strong>25 steps stood out</strong>" in text and "The last 20 of 25" in text
    assert "loss 24 &lt;is&gt; large" in text and "loss 4 &lt;is&gt;" not in text
    assert "folder-11 <span" in text and "and 18 more" in text and "folder-12" not in text
    assert "<strong>1 sample could not be read</strong>" in text and "cut &lt;off&gt;" in text and "folder-good" in text
    assert "41.2 %" in text and "of the peak (MFU)" in text and "loss on held-out clips" in text
    for title in ("Losses", "Held-out clips", "Networks", "Time and memory"):
        assert f"<h3>{title}</h3>" in text
    # The loss, by timestep (two), networks, shares of the time, and the peak.
    assert sum(source.startswith("data:image/png") for source in parsed.sources) == 6
    assert "gradient norm by network over the steps" in text
