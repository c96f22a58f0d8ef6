"""On PYTHONPATH this registers the toy tasks in every process, ranks and Ray's workers included.

Not at once, which would load PyTorch everywhere: when `train.recipe` is imported.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.TASKS["toy"] = "tests.support.toy_task"  # type: ignore[attr-defined]
        module.TASKS["toy-adversary"] = "tests.support.toy_adversary"  # type: ignore[attr-defined]


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "train.recipe":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
