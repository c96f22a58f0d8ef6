"""Finds the weights of the network for speech activity: in a folder of the user's, the cache, or a registry's wheel.

The places are tried in this order:

    1. the folder that TALKINGHEAD_MODELS names, where it holds `silero_vad_16k.safetensors`
    2. the user cache, where the face model lies, too
    3. the `silero-vad` wheel, fetched with the pip that runs this Python from whatever registry it is configured for;
       one file is taken out of it, nothing is installed and none of its code runs

Place 3 leaves the file in the cache. Wherever it lies, its hash is compared before anything looks into it.
"""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

from talkinghead.files.foreign import read_limited
from talkinghead.files.model_cache import cache_folder, store_in_cache
from talkinghead.provenance import hash_bytes
from talkinghead.runtime.errors import UnreachableError
from talkinghead.runtime.wheel import wheel_files

log = logging.getLogger(__name__)

ACTIVITY_FILE = "silero_vad_16k.safetensors"
ACTIVITY_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"
"""Hash of the weights for 16 kHz in Silero VAD 6.2.3, MIT licence. The TorchScript file of the same wheel holds other
weights of the same network."""
ACTIVITY_WHEEL = "silero-vad==6.2.3"

_MEMBER = f"silero_vad/data/{ACTIVITY_FILE}"
_BYTES = 8 << 20  # most bytes of the file; it has 1.2 MB
_PUT = f"put {ACTIVITY_FILE} out of the {ACTIVITY_WHEEL} wheel into a folder and set TALKINGHEAD_MODELS to it"


def find_activity_weights() -> Path:
    """File of the weights, which is fetched into the cache where it is nowhere. Many processes may do this at once.

    Raises:
        ValueError: A file with another hash.
        UnreachableError: It is nowhere, and no registry gives it.
        OSError: The cache cannot be written, or the file cannot be read.
    """
    named = os.environ.get("TALKINGHEAD_MODELS")
    cached = cache_folder() / ACTIVITY_FILE
    for path in (*((Path(named).absolute() / ACTIVITY_FILE,) if named else ()), cached):
        if path.exists():
            _check(str(path), read_limited(path, _BYTES, "model of speech activity"))
            return path
    store_in_cache({})  # an unwritable cache is reported before anything is downloaded in vain
    store_in_cache({ACTIVITY_FILE: _fetch()})
    return cached


def say_where_activity_weights_are() -> None:
    """Find or fetch them, and log the place; a warning where they are nowhere, for only one column needs them.

    Raises like `find_activity_weights`, but for `UnreachableError`.
    """
    try:
        log.info("speech activity: %s", find_activity_weights())
    except UnreachableError as error:
        log.warning("%s", error)


def _fetch() -> bytes:
    """The file out of the wheel; raises `UnreachableError` or `ValueError`."""
    log.info("speech activity: fetching the %s wheel with pip", ACTIVITY_WHEEL)
    try:
        data = wheel_files(ACTIVITY_WHEEL, {ACTIVITY_FILE: _MEMBER}, largest=_BYTES)[ACTIVITY_FILE]
    except UnreachableError as error:
        raise UnreachableError(
            f"no weights for speech activity: {error}. Run `make models` where a package registry can be reached, or"
            f" {_PUT}"
        ) from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"the registry's {ACTIVITY_WHEEL} is not the published wheel ({error}): {_PUT}") from error
    _check(f"{ACTIVITY_FILE} in the registry's {ACTIVITY_WHEEL}", data)
    return data


def _check(source: str, data: bytes) -> None:
    if (found := hash_bytes(data)) != ACTIVITY_SHA256:
        raise ValueError(
            f"{source} has sha256 {found} ({len(data)} bytes), expected {ACTIVITY_SHA256}. It is damaged or of another"
            f" version: delete it and run `make models`, or {_PUT}"
        )
