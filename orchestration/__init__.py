"""Ray: units of work, ledger, quarantine, report."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository: where `python -m …` is run."""
