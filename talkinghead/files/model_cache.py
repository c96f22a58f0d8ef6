"""The user's cache of model files: where it is, and how files get into it while other processes look for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache of model files, $XDG_CACHE_HOME/talkinghead/models (~/.cache when unset); it may not exist
    yet."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)).absolute() / "talkinghead" / "models"  # noqa: PTH111 (never raises)


def store_in_cache(files: Mapping[str, bytes]) -> None:
    """Write files into the cache, each under a temporary name first: other processes never find a part of one.

    Args:
        files: Name → content; none only makes the folder.

    Raises:
        OSError: The cache cannot be written; the message says what to do.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # A folder in the cache itself: renaming works within one file system only.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as scratch:
            for name, data in files.items():
                (Path(scratch) / name).write_bytes(data)
                (Path(scratch) / name).replace(cache / name)
    except OSError as error:
        raise OSError(
            f"cannot write to the model cache {cache}: {error.strerror or error}. Make it writable, set XDG_CACHE_HOME "
            "to a folder that is, or set TALKINGHEAD_MODELS to a folder with the model"
        ) from error
