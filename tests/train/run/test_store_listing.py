from __future__ import annotations

import json
from typing import Any

import pytest

from train.run.store_listing import FileEntry, Listing, StoredFolder, is_whole, place_for, place_of

TOKEN = "0123abcd"
ENTRY = FileEntry(size=3, sha256="0" * 64)


def listing(*names: str) -> Listing:
    found = Listing(writer="me")
    for name in names:
        found = found.with_folder(name, StoredFolder(at=place_for(name, TOKEN), files={"a": ENTRY, "sub/b": ENTRY}))
    return found


def test_it_comes_back_as_it_was() -> None:
    names = ("task", "pretrained_model", "weights/step-00000004", "checkpoints/step-00000004")
    found = listing(*names, "checkpoints/step-123456789")
    assert Listing.from_json(found.to_json()) == found
    assert found.steps() == [4, 123456789]
    assert found.without("task").folders.keys() == found.folders.keys() - {"task"}
    assert Listing.from_json(Listing().to_json()) == Listing()


def test_a_damaged_checkpoint_keeps_its_files_and_does_not_count() -> None:
    found = listing("checkpoints/step-00000004")
    folder = found.folders["checkpoints/step-00000004"]
    moved = found.without("checkpoints/step-00000004").with_folder("checkpoints/damaged-step-00000004-1", folder)
    assert Listing.from_json(moved.to_json()) == moved and moved.steps() == []


def test_objects_know_their_folder() -> None:
    for name in ("task", "pretrained_model", "weights/step-00000004", "checkpoints/step-00000004"):
        assert is_whole(name)
        assert place_of(f"{place_for(name, TOKEN)}/sub/file") == place_for(name, TOKEN)
    assert place_for("pretrained_model", TOKEN) == "pretrained_model"  # where people look for it
    assert place_for("task", TOKEN) != place_for("task", "ffffffff")
    for plain in ("config.json", "weights/best", "validation/step-00000004/result.json", "tasks/x", "task/x"):
        assert place_of(plain) is None
    assert not is_whole("validation") and not is_whole("checkpoints")


def changed(change: Any) -> bytes:
    value = json.loads(listing("checkpoints/step-00000004").to_json())
    change(value, value["folders"]["checkpoints/step-00000004"])
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2, "writer": "", "folders": {}}',
        b'{"format": 1, "writer": "", "folders": []}',
        b'{"format": 1, "writer": "", "folders": {"../up": {"at": "task.0123abcd", "files": {}}}}',
        b'{"format": 1, "writer": "", "folders": {"task": {"at": "task.0123abcd"}}}',
        changed(lambda value, folder: folder["files"].update({"../../config.json": folder["files"]["a"]})),
        changed(lambda value, folder: folder["files"].update({"/etc/passwd": folder["files"]["a"]})),
        changed(lambda value, folder: folder.update(at="..")),
        changed(lambda value, folder: folder.update(at="")),
        changed(lambda value, folder: folder["files"]["a"].update(sha256="x")),
        changed(lambda value, folder: folder["files"]["a"].update(size=-1)),
        changed(lambda value, folder: folder["files"]["a"].update(size="3")),
    ],
)
def test_anything_else_is_one_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Listing.from_json(data)
