"""The derived columns and global fits that there are, in an order in which each stands after those it needs.

A new one is a file of its own and a line here; CONTRIBUTING.md shows both. This module is imported by every command, so
what takes seconds to import (PyTorch, MediaPipe, OpenCV) stands in the functions that need it.
"""

from __future__ import annotations

from annotate.fits.expression import EXPRESSION
from annotate.fits.speakers import SPEAKERS
from annotate.labels import LABELS
from annotate.latents import LATENTS
from annotate.mouth import MOUTH
from annotate.speech_activity import SPEECH_ACTIVITY
from annotate.sync import SYNC
from talkinghead.derived import DerivedColumn
from talkinghead.global_fit import GlobalFit

_columns: tuple[DerivedColumn, ...] = (LATENTS, MOUTH, SPEECH_ACTIVITY, SYNC, LABELS)
COLUMNS: dict[str, DerivedColumn] = {column.name: column for column in _columns}
"""Name → derived column, as `make derive COLUMNS=…` takes it."""

_fits: tuple[GlobalFit, ...] = (SPEAKERS, EXPRESSION)
FITS: dict[str, GlobalFit] = {fit.name: fit for fit in _fits}
"""Name → global fit, as `make basis FITS=…` takes it."""
