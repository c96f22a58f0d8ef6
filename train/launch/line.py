"""Lines between rank 0 and the other ranks: TCP connections over which JSON goes, and the proof of who is at an end."""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from typing import Any

from talkinghead.files.foreign import parse_json

SEND_S = 2.0
"""Seconds that a message of a few hundred bytes may take; it takes so long only where the other end stands still."""
_STRANGER_BYTES, _MESSAGE_BYTES = 4 << 10, 64 << 10


class Line:
    """Connection between rank 0 and another rank, over which lines of JSON go.

    Attributes:
        rank: Rank at the other end; None as long as it has not shown that it is one.
        nonce: Number that this end has drawn, for the other one's proof.
        since: When it was opened.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.rank: int | None = None
        self.nonce = secrets.token_hex(32)
        self.since = time.monotonic()
        self._buffer = b""
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send a message; one that cannot be sent is dropped: that the line is closed shows in `receive`."""
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have come; waits for some if there are none. None: the line is closed, or a stranger's."""
        try:
            data = self.socket.recv(_MESSAGE_BYTES)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        most = _STRANGER_BYTES if self.rank is None else _MESSAGE_BYTES
        if not data or max(map(len, (*lines, self._buffer))) > most:
            return None
        try:
            messages = [parse_json(line, "a message") for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def proof(key: bytes, role: str, rank: int, hub: str, member: str) -> str:
    """Proof that an end of a line knows the key.

    Args:
        key: Secret of the ranks.
        role: Which end gives it: `hub` is rank 0.
        rank: Rank at the other end from rank 0.
        hub: Number that rank 0 has drawn for this line.
        member: Number that the other end has drawn.
    """
    return hmac.digest(key, f"{role} {rank} {hub} {member}".encode(), "sha256").hex()
