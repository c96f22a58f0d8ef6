"""Clips that are damaged after their index was made, as disks and copies do it."""

from __future__ import annotations

from shards.reader import ShardReader
from talkinghead.files.storage import Storage


def cut_in_half(storage: Storage, key: str, suffix: str) -> None:
    """Cut a member of a sample in half: the other half of its place in the shard holds zeros from then on.

    Of a sound, the half that is left is the second one: its header is what tells.
    """
    reader = ShardReader(storage, split=None, kept=False)
    path, member = reader.locate(reader.find(key).row, suffix)
    assert storage.local_root
    half = member.size // 2
    first = 0 if suffix == "wav" else half
    with (storage.local_root / path).open("r+b") as file:
        file.seek(member.offset + first)
        file.write(b"\0" * half)
