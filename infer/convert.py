"""`infer convert`: AniPortrait's published files turned into folders of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from infer.weights import ORIGIN_FILE, PUBLISHED_SUFFIXES, Kind
from talkinghead.provenance import hash_file, pretty_json
from talkinghead.staging import check_writable, staged_folder

Chunking = Literal["continue", "restart"]


def convert(kind: Kind, source: Path, folder: Path, *, chunking: Chunking | None = None) -> Path:
    """Turn a published file into a folder with `config.json` and safetensors; prints the key report on stderr.

    Args:
        kind: What the file holds.
        source: `audio2mesh.pt`, `audio2pose.pt`, or a safetensors file of it.
        folder: New or empty.
        chunking: How the pose model decodes long speech: `continue` (also when None), or `restart`, as its authors do:
            every 5 s from pose 0, and the head jumps there.

    Raises:
        ValueError: A chunking for the mesh model; the file is damaged, or keys are missing, unexpected or of another
            shape; or the folder is in use.
        OSError: The disk is full, or the folder cannot be written.
    """
    if chunking is not None and kind != "audio2pose":
        raise ValueError("--chunking is of the head pose model: leave it out for --audio2mesh")
    if not source.is_file() or source.suffix not in PUBLISHED_SUFFIXES:
        raise ValueError(f"{source} is no published file: wanted is {kind}.pt")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: give another name, or remove it first")
    check_writable(folder / ORIGIN_FILE if folder.is_dir() else folder)
    from talkinghead.models.published import load_published

    model, report = load_published(kind, source)
    print(report, file=sys.stderr)
    if chunking is not None:
        model.register_to_config(chunking=chunking)
    with staged_folder(folder) as scratch:
        model.save_pretrained(scratch)
        origin = {"origin": "published", "kind": kind, "file": source.name, "sha256": hash_file(source)}
        (scratch / ORIGIN_FILE).write_bytes(pretty_json(origin))
    return folder
