"""The layout that every part relies on: imports point one way, without circles; tests mirror the tree; names hold."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ALLOWED = {
    "talkinghead": set(),
    "ingest": {"talkinghead"},
    "annotate": {"talkinghead"},
    "shards": {"talkinghead"},
    "infer": {"talkinghead", "ingest", "annotate", "shards"},
    "train": {"talkinghead", "ingest", "annotate", "shards", "infer"},
    "orchestration": {"talkinghead", "ingest", "annotate", "shards", "infer", "train"},
}
FLOORS = (
    ("",),  # the files at the library's top
    ("files", "runtime"),
    ("media", "face"),
    ("geometry",),
    ("motion",),
    ("features",),
    ("models",),
    ("pipelines",),
)
"""Folders of the library, lowest first: a floor imports itself and what is below it."""
FAMILIES = {"audio2lmk": set(), "lmk2video": set()}
"""Family of models → the families it builds on. Shared kinds of models import no family."""
OLD_WORDS = {
    "image": r"pictur",
    "VAE": r"\b(?:[Cc]osine|image|[Vv]ae|VAE|tiny|latent)[ _]?[Cc]odec",
    "seam": r"\bjoints?\b",
    "attend": r"\bhears?\b|\bHearing",
    "ProgressCallback": r"\bWatch = Callable",
    "next to": r"\b[Bb]eside\b",
    "after": r"\b[Bb]ehind\b(?! (?:the|its) camera)",
    "a docstring that begins with the thing": r'^\s*(?:"""|\w+: )(?:Of (?:the|an?|its|that|what)|Likewise|See there)\b',
}
"""Word of the field → what used to stand for it, and is gone."""
KEPT = ("tiny picture codec", "CosineCodec", "cosine_codec", "nothing behind {name}", "expected behind the name")
"""Old words that stay where they are stored: keys of random numbers, names in saved folders, problems in catalogs."""
RAY = ("orchestration", "train/launch", "talkinghead/runtime/ray_cluster.py")
"""Who may import Ray."""
TARGETS = {
    "setup", "models", "demo", "test", "bench", "lint", "help",
    "ingest", "annotate", "shards", "verify", "report", "reannotate", "quarantine", "retry", "remove", "gc",
    "derive", "latents", "basis", "train-audio2mesh", "train-audio2pose", "train-stage1", "train-stage2", "animate",
    "cluster-up", "cluster-down", "submit", "status", "test-cluster",
}  # fmt: skip


def modules() -> list[Path]:
    return [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """`talkinghead/files/uri.py` → `talkinghead.files.uri`, a package's `__init__.py` → the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def our_names() -> frozenset[str]:
    return frozenset(map(name_of, modules()))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in it: at the top, in a function, for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in our_names() else node.module)
    return frozenset(found)


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = packages(path) & ALLOWED.keys() - {package}
    assert ours <= ALLOWED[package], f"{package} must not import {ours - ALLOWED[package]}"
    if not path.relative_to(ROOT).as_posix().startswith(RAY):
        assert "ray" not in packages(path), f"only {', '.join(RAY)} know Ray"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Also not through an import in a function, or one for type checkers only."""
    graph = {name_of(path): imports(path) & our_names() for path in modules()}
    for path in modules():
        # A package's __init__ runs before what is in it, but that is no import of its own.
        graph[name_of(path)] -= {name_of(path)}
    done: set[str] = set()
    way: list[str] = []

    def visit(name: str) -> None:
        assert name not in way, " → ".join([*way[way.index(name) :], name])
        if name in done:
            return
        way.append(name)
        for other in sorted(graph[name]):
            visit(other)
        way.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_nothing_is_learnt_from_what_evaluates() -> None:
    """Of `train`, validations, plots and the overview look at evaluations and metrics; losses and data do not."""
    may = {"train.run.plots", "train.run.overview"}
    for path in (ROOT / "train").rglob("*.py"):
        if path.stem != "validation" and name_of(path) not in may:
            found = {name for name in imports(path) if name.startswith(("infer.evaluation", "infer.metrics"))}
            assert not found, f"{name_of(path)} must not import {', '.join(found)}"


def floor(name: str) -> int:
    folder = name.split(".")[1] if name.count(".") else ""
    return next((number for number, folders in enumerate(FLOORS) if folder in folders), 0)


def family(name: str) -> str | None:
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "models" and parts[2] in FAMILIES else None


@pytest.mark.parametrize("path", [p for p in modules() if p.is_relative_to(ROOT / "talkinghead")], ids=name_of)
def test_the_library_stands_on_its_lower_floors(path: Path) -> None:
    name = name_of(path)
    for other in imports(path) & our_names():
        if (name, other) == ("talkinghead", "talkinghead.runtime.threads"):
            continue  # what has to happen before anything else is imported
        assert floor(other) <= floor(name), f"{name} is below {other}"
        if floor(name) == floor(other) == FLOORS.index(("models",)) and family(other) != family(name):
            builds_on = FAMILIES.get(family(name) or "", set())
            assert family(other) is None or family(other) in builds_on, f"{name} must not import {other}"


def test_every_folder_of_the_library_has_a_floor() -> None:
    folders = {path.parent.name for path in (ROOT / "talkinghead").glob("*/__init__.py")}
    assert folders <= {folder for row in FLOORS for folder in row}


def test_tests_mirror_the_tree() -> None:
    """`tests/a/b/test_c.py`, or `test_c_<aspect>.py`, tests `a/b/c.py`, or the folder `a/b` or `a/b/c` as a whole."""
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = ROOT / test.parent.relative_to(ROOT / "tests")
        if folder == ROOT:
            assert test == Path(__file__)
            continue
        known = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.glob("*/")} | {folder.name}
        stem = test.stem.removeprefix("test_")
        assert any(stem == name or stem.startswith(f"{name}_") for name in known), f"{test} mirrors nothing"
    helpers = {path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")}
    apart = {p for p in helpers if p.name != "conftest.py" and not p.is_relative_to(ROOT / "tests" / "support")}
    assert not apart, "helpers of tests stand in tests/support"


def texts() -> list[Path]:
    """Everything that people read: code, templates, documents."""
    pages = [path for package in ALLOWED for path in (ROOT / package).rglob("*.j2")]
    return [*modules(), *pages, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "Makefile"]


@pytest.mark.parametrize("word", OLD_WORDS)
def test_private_words_are_gone(word: str) -> None:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for kept in KEPT:
                line = line.replace(kept, "")
            if re.search(OLD_WORDS[word], line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, f"write {word}:\n" + "\n".join(found)


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
