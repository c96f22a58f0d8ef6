"""The Python blocks of the documents about inference run, in order, in a folder with the files that they name.

The weights are tiny, face and speech real. Every block of every document is in one of two tables here, so that a new
one is run or said to be run elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkinghead.media.audio import encode_wav, read_whole_audio
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from tests.support.motions import a_motion
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline

RUN = {"docs/drivers.md": 2, "docs/motion.md": 1, "README.md": 1}
"""Document → number of its blocks that run here: those that import from `infer` or `talkinghead`."""
ELSEWHERE = {
    "README.md": 1,  # reads DATA of several clips: tests/shards
    "docs/columns.md": 1,  # the same
    "docs/lmk2video.md": 1,  # a sketch: distilled weights, and a scheduler that is imported where it is used
    "docs/dubbing.md": 1,  # a whole dubbing: tests/infer/dubbing
    "CONTRIBUTING.md": 3,  # files to be written: tests/annotate/test_columns.py; a metric without a body
}
"""Document → number of its blocks that do not run here."""
GIVEN: dict[str, dict[str, Any]] = {
    "docs/motion.md": {
        "speech": a_motion(30, 1),
        "video": a_motion(30, 2),
        "still": a_motion(30, 3),
        "silent": np.arange(30) > 12,
    }
}
"""Document → names that the text before a block speaks of."""


def blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def runs(block: str) -> bool:
    return bool(re.search(r"^from (infer|talkinghead)", block, re.MULTILINE)) and "infer.dubbing" not in block


@pytest.fixture
def folder(media: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `dir`, `face.png` and `speech.wav`."""
    models: dict[str, Any] = {
        "audio2mesh": Audio2Mesh.from_pretrained(tiny_weights / "audio2mesh"),
        "audio2pose": Audio2Pose.from_pretrained(tiny_weights / "audio2pose"),
    }
    tiny_pipeline(width=32, height=32, **models).save_pretrained(tmp_path / "dir")
    (tmp_path / "face.png").symlink_to(media / "image" / "AniPortrait_lyl.png")
    speech = read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000:10560]
    (tmp_path / "speech.wav").write_bytes(encode_wav(speech))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_known() -> None:
    documents = [*(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), "README.md", "CONTRIBUTING.md"]
    for document in documents:
        found = blocks(document)
        assert len(found) == RUN.get(document, 0) + ELSEWHERE.get(document, 0), document
        if document != "CONTRIBUTING.md":
            assert sum(map(runs, found)) == RUN.get(document, 0), document
        for number, block in enumerate(found):
            compile(block, f"{document}, block {number}", "exec")


@pytest.mark.parametrize("document", RUN)
def test_blocks_run(document: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = dict(GIVEN.get(document, {}))
    for block in filter(runs, blocks(document)):
        exec(compile(block, document, "exec"), names)
    if document == "docs/motion.md":
        assert len(names["motion"]) == 30
        return
    assert isinstance(names["frame"], np.ndarray) and names["frame"].dtype == np.uint8
    if document == "docs/drivers.md":
        printed = capsys.readouterr().out.splitlines()
        assert printed == ["4 frames at 25.0", "(4, 468, 2)"] and names["frame"].shape == (32, 32, 3)
        assert names["portrait"].width == names["portrait"].height < names["whole"].width
