"""Reading what a program wrote to a terminal or a pipe of ours."""

from __future__ import annotations

import os


def everything_written(reader: int) -> str:
    """All that was written to a pipe or a pseudo terminal whose writing side is closed; closes the reading side.

    The kernel hands the output of a terminal over in pieces: one read may return only the first of them.

    Args:
        reader: File descriptor of the reading side.
    """
    pieces = []
    while True:
        try:
            piece = os.read(reader, 1 << 16)
        except OSError:  # Linux: EIO, once all is read and the other side is closed.
            piece = b""
        if not piece:
            os.close(reader)
            return b"".join(pieces).decode()
        pieces.append(piece)
