"""A text stream that shows control characters instead of sending them, for terminals."""

from __future__ import annotations

import io
from typing import Any, TextIO, cast

from talkinghead.runtime.errors import printable


class PrintableStream(io.TextIOBase):
    """Passes text on to another stream, made printable (`talkinghead.runtime.errors.printable`).

    Args:
        stream: Stream that gets the text; all else (its file descriptor, whether it is a terminal) is asked of it too.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = underlying(stream)

    def write(self, text: str) -> int:
        """Write a text; returns its own length, as if it had been written as it is."""
        self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self.stream.flush()

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The other stream's file descriptor."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The other stream's encoding."""
        return self.stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def underlying(stream: TextIO) -> TextIO:
    """The stream that a `PrintableStream` passes its text on to, or the stream itself."""
    return stream.stream if isinstance(stream, PrintableStream) else cast(TextIO, stream)
