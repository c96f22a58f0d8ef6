"""Files of weights of strangers: tensors or one line, nothing is run, no more memory than the file has."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from talkinghead.models.weight_files import DIFFUSERS_FILES, find_weight_files, read_folder, read_weights
from tests.support.limited_call import call_limited

ADVICE = ("weights_only", "add_safe_globals", "trust", "allowlist", "torch.load")
"""Words of PyTorch's advice to load a file without its allow-list."""


class Touch:
    """Object whose pickle makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def refused(file: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_weights(file)
    text = str(caught.value)
    assert str(file) in text and "\n" not in text and len(text) < 600
    assert not [word for word in ADVICE if word in text], text
    return text


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("form", ["archive", "legacy", "plain pickle"])
def test_no_code_of_a_pickle_runs(tmp_path: Path, form: str, suffix: str) -> None:
    file, marker = tmp_path / f"a.{suffix}", tmp_path / "was-run"
    content = {"weight": torch.zeros(3), "more": Touch(marker)}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "archive")
    assert "something other than tensors and plain values" in refused(file)
    assert not marker.exists()


def test_scripts_are_no_weights(tmp_path: Path) -> None:
    """A TorchScript archive holds code; PyTorch would say how to load it anyway."""
    file = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Doubled()), str(file))
    assert "TorchScript" in refused(file)


def test_the_tar_format_is_no_weights(tmp_path: Path) -> None:
    """PyTorch before 0.4 wrote pickles in a tar archive, for which there is no allow-list."""
    file = tmp_path / "old.pt"
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Touch(tmp_path / "was-run"), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    refused(file)
    assert not (tmp_path / "was-run").exists()


def test_damaged_pickles_are_lines(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({f"layer.{number}.weight": torch.randn(4, 4) for number in range(20)}, whole)
    data = whole.getvalue()
    legacy = io.BytesIO()
    torch.save({"weight": torch.randn(40)}, legacy, _use_new_zipfile_serialization=False)
    for number, source in enumerate((data, legacy.getvalue())):
        for place in range(0, len(source), max(1, len(source) // 60)):
            file = tmp_path / f"{number}.pt"
            changed = bytearray(source)
            changed[place] ^= 0xFF
            for content in (bytes(changed), source[:place]):
                file.write_bytes(content)
                try:
                    found = read_weights(file)
                except ValueError as error:
                    assert str(file) in str(error) and "\n" not in str(error)
                    assert not [word for word in ADVICE if word in str(error)], error
                else:
                    assert all(isinstance(value, torch.Tensor) for value in found.values())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pth", b"", "it is empty"),
        ("a.safetensors", b"", "it is empty"),
        ("a.pt", bytes(1000), "begins with zeros"),
        ("a.pth", b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        ("a.safetensors", b"\n<html><body>Sign in</body></html>", "a web page"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git lfs pull"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.pt", b"PK\x03\x04" + bytes(100), "it is cut short"),
        ("a.pt", b"no weights", "its pickle holds something other"),
    ],
)
def test_ends_of_failed_downloads_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert said in refused(file)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("archive", [True, False])
def test_a_copy_that_was_broken_off_is_named(tmp_path: Path, archive: bool, part: float) -> None:
    whole, file = io.BytesIO(), tmp_path / "a.pt"
    torch.save({"weight": torch.randn(300, 300)}, whole, _use_new_zipfile_serialization=archive)
    file.write_bytes(whole.getvalue()[: round(len(whole.getvalue()) * part)])
    assert "it is cut short" in refused(file)


def test_a_saved_network_is_no_file_of_weights(tmp_path: Path) -> None:
    """PyTorch's own message says how to load it in spite of that."""
    torch.save({"network": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    assert "its pickle holds something other than tensors" in refused(tmp_path / "a.pt")


def test_compressed_archives_are_not_unpacked(tmp_path: Path) -> None:
    """PyTorch stores; a stranger's archive of half a megabyte would unpack to half a gigabyte."""
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"weight": torch.zeros(1)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content + bytes(1 << 29) if entry.filename.endswith("/0") else content)
    assert packed.stat().st_size < 1 << 20
    found = call_limited("from talkinghead.models.weight_files import read_weights as call", packed)
    assert "it is a compressed archive" in found.said and found.memory < 50e6


def test_a_pickle_cannot_claim_values_that_it_lacks(tmp_path: Path) -> None:
    """A million of millions of numbers out of one: cheap as long as nobody copies them."""
    claimed = tmp_path / "diffusion_pytorch_model.bin"
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, claimed)
    with pytest.raises(ValueError, match=r"claims tensors of 4,000,000,000,000 bytes, which it does not hold"):
        read_folder(tmp_path, DIFFUSERS_FILES)
    for tensor in (
        torch.zeros(1000, 1000).to_sparse(),
        torch.empty(10**6, 10**6, device="meta"),
        torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
    ):
        torch.save({"weight": tensor}, claimed)
        refused(claimed)
    # A size in the file itself, of a storage that is not there.
    legacy = io.BytesIO()
    torch.save(OrderedDict(weight=torch.zeros(5)), legacy, _use_new_zipfile_serialization=False)
    data = legacy.getvalue()
    assert data.count(b"K\x05") >= 2
    claimed.write_bytes(data.replace(b"K\x05", b"J" + struct.pack("<i", 2**31 - 1)))
    found = call_limited("from talkinghead.models.weight_files import read_weights as call", claimed)
    assert found.said.startswith("error: ") and found.memory < 50e6


@pytest.mark.parametrize("length", [2**63, 2**40, (16 << 20) + 1, 100])
def test_headers_of_safetensors_have_a_limit(tmp_path: Path, length: int) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b'{"a":' * 15)
    refused(file)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(1 << 30)  # a file with a hole
    found = call_limited("from talkinghead.models.weight_files import read_weights as call", file)
    assert found.said.startswith("error: ") and found.memory < 50e6


def test_tables_of_safetensors_are_checked(tmp_path: Path) -> None:
    def written(table: object) -> Path:
        file = tmp_path / "a.safetensors"
        header = table if isinstance(table, bytes) else json.dumps(table).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
        return file

    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    assert read_weights(written({"a": entry}))["a"].shape == (4,)
    refused(written({"a": entry | {"shape": [2**40, 2**40]}}))
    refused(written({"a": entry | {"data_offsets": [0, 2**50]}}))
    refused(written({"a": entry | {"shape": [-1]}}))
    refused(written(b"[" * 100_000))
    refused(written({"a": entry, "b": entry}))


def test_a_pipe_in_place_of_weights_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        os.mkfifo(tmp_path / name)
        assert "is a named pipe" in refused(tmp_path / name)


def index(folder: Path, part: str) -> None:
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": part}}))


def test_parts_lie_in_the_folder_of_their_index(tmp_path: Path) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    secret = tmp_path / "secret.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(3)}, secret)
    for part in ("../secret.safetensors", str(secret), "x/../../secret.safetensors", "..", "", "part.bin", "part.pt"):
        index(folder, part)
        with pytest.raises(ValueError, match=r"which is no \.safetensors file in its folder"):
            find_weight_files(folder, DIFFUSERS_FILES)
    # A link is how the cache of Hugging Face keeps files: it may stay, for reading.
    (folder / "part.safetensors").symlink_to(secret)
    index(folder, "part.safetensors")
    assert read_folder(folder, DIFFUSERS_FILES)["weight"].tolist() == [1, 1, 1]
    index(folder, "gone.safetensors")
    with pytest.raises(ValueError, match=r"gone\.safetensors are missing"):
        find_weight_files(folder, DIFFUSERS_FILES)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_odd_indexes_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors\.index\.json") as caught:
        find_weight_files(tmp_path, DIFFUSERS_FILES)
    assert "\n" not in str(caught.value)
