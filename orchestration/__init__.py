"""The data side on Ray: jobs, units of work, ledger, quarantine and report."""

from __future__ import annotations

from pathlib import Path

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the repository: working directory of every `python -m …`."""
