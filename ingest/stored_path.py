"""File names as text: what a POSIX name that is not valid UTF-8 looks like in Parquet and in messages.

Python holds the undecodable bytes of a name as lone surrogates (`surrogateescape`), which UTF-8, and so Parquet,
cannot hold. A name cannot contain NUL, so NUL followed by two hexadecimal digits stands for such a byte in Parquet;
every other name is stored as it is.
"""

from __future__ import annotations

import re


def to_stored(path: str) -> str:
    """Valid Unicode for any path; the path itself when it already is. Inverse: `from_stored`."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\0{ord(match[0]) - 0xDC00:02x}", path)


def from_stored(text: str) -> str:
    """The path that `to_stored` was given."""
    return re.sub("\0([0-9a-f]{2})", lambda match: chr(0xDC00 + int(match[1], 16)), text)


def display_path(path: str) -> str:
    """The path for people: undecodable bytes and control characters (newlines too) as backslash escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
