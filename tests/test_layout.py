"""The layout that every part relies on: imports point one way, heavy imports stay where they are needed, names hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = {
    "talkinghead": set(),
    "ingest": {"talkinghead"},
    "annotate": {"talkinghead"},
    "shards": {"talkinghead"},
    "infer": {"talkinghead", "ingest", "annotate", "shards"},
    "train": {"talkinghead", "ingest", "annotate", "shards", "infer"},
    "orchestration": {"talkinghead", "ingest", "annotate", "shards", "infer", "train"},
}
TARGETS = {
    "setup", "models", "demo", "test", "bench", "lint", "help",
    "ingest", "annotate", "shards", "verify", "report", "reannotate", "quarantine", "retry",
    "latents", "train-audio2mesh", "train-audio2pose", "train-stage1", "train-stage2", "animate",
}  # fmt: skip


def modules() -> list[Path]:
    return [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = imported_packages(path) & ALLOWED.keys() - {package}
    assert ours <= ALLOWED[package], f"{package} must not import {ours - ALLOWED[package]}"
    if package != "orchestration" and path != ROOT / "train/launch/ray_train.py":
        assert "ray" not in imported_packages(path), "only orchestration and train/launch/ray_train.py know Ray"


def test_importing_the_library_stays_fast() -> None:
    heavy = "mediapipe", "ray", "torch", "diffusers", "transformers", "gradio", "cv2", "av"
    code = f"import sys, talkinghead, talkinghead.schema; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_runs_through_a_shell_or_unpickles_data() -> None:
    for path in modules():
        text = path.read_text()
        assert not re.search(r"shell\s*=\s*True|os\.system\(|os\.popen\(", text), path
        assert not re.search(r"\bpickle\.load|allow_pickle\s*=\s*True", text), path


def test_frozen_make_targets_exist_and_help_lists_them() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z0-9-]+)", done.stdout, re.M))
    assert listed >= TARGETS
