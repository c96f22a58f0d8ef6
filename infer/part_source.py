"""What moves a part of the face, as options name it: `video:clip.mp4`, `file:motion.npz`, `still`, …"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PartSource:
    """Kind of what moves a part of the face, and its file."""

    kind: str
    """`audio`: speech; `video`: the face in a video; `file`: a saved motion; `template`: a head pose template; `still`:
    nothing, as the portrait shows it; `keep`: what moves the mouth."""
    path: Path | None = None
    """Its file; None for a kind without one."""

    @classmethod
    def parse(cls, option: str, text: str, *forms: str) -> PartSource:
        """Parse the value of an option.

        Args:
            option: Name of the option, for the message.
            text: Its value.
            forms: What it may be: `still`, or `video:FILE` for a kind with a file.

        Raises:
            ValueError: The text has none of the forms; the message lists them.
        """
        kind, colon, name = text.partition(":")
        for form in forms:
            known, with_file, _ = form.partition(":")
            if kind == known and bool(with_file) == bool(colon) == bool(name):
                return cls(kind=kind, path=Path(name) if name else None)
        raise ValueError(f"{option} is {text!r}, must be {', '.join(forms[:-1])} or {forms[-1]}")
