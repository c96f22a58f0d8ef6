"""Settings of networks (`config.json`) as data: they choose no code, and ask for nothing from the network.

The loaders of `transformers` and `diffusers` do what such a file says: download kernels for attention, import modules
of the folder, fetch the base model of an adapter that lies next to it, quantise. A folder of weights may be a
stranger's, so those loaders are not used. The classes are chosen here, and get the settings that they declare.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from talkinghead.files.foreign import read_json

CONFIG_FILE = "config.json"

_CONFIG_BYTES = 1 << 20
_DEPTH = 8
_LARGEST, _LONGEST = 1_000_000, 10_000
"""Largest whole number, and longest list, among the settings of a network."""
_ATTENTION = (None, "eager", "sdpa")
"""Kinds of attention that are part of the libraries; others are downloaded, or installed by the user."""
_CODE = {
    "auto_map": "code of its own",
    "custom_pipelines": "code of its own",
    "trust_remote_code": "code of its own",
    "quantization_config": "quantised weights, whose library would run",
    "use_kernels": "downloaded kernels",
    "kernel_config": "downloaded kernels",
}
"""Setting → what it asks for."""


def read_settings(file: Path, wanted: str = "the JSON of a configuration") -> dict[str, Any]:
    """Settings of a network or a pipeline from a JSON file.

    Args:
        file: File to read.
        wanted: What the file should be, for the message.

    Raises:
        ValueError: The file is no JSON object of a reasonable size, or asks for code.
        OSError: It cannot be read.
    """
    try:
        settings = read_json(file, _CONFIG_BYTES)
    except ValueError as error:
        reason = str(error).removeprefix(f"{file} ")
        raise ValueError(f"{file} is not {wanted}: the folder is damaged, copy it again ({reason})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not the JSON of a configuration: copy the folder again")
    refuse_code(settings, str(file))
    return settings


def refuse_code(settings: Mapping[str, Any], name: str, depth: int = 0) -> None:
    """Refuse settings that ask for code or downloads, at any depth.

    Loading ignores such settings anyway; but a network that was made for them computes something else without.

    Args:
        settings: Settings, or a part of them.
        name: Name of the file, for the message.
        depth: Depth of the part in the settings.

    Raises:
        ValueError: One of them does, or they are nested more deeply than any network's.
    """
    if depth > _DEPTH:
        raise ValueError(f"{name} is nested too deeply for the settings of a network: copy the folder again")
    for key, value in settings.items():
        asked = _CODE.get(key) if value not in (None, False, {}, []) else None
        if key.endswith("attn_implementation") and not (value is None or value in _ATTENTION):
            asked = "downloaded or installed kernels"
        if asked:
            raise ValueError(
                f"{name} asks for {asked} ({key}), which is not run: take weights in the plain form of the network"
            )
        if isinstance(value, Mapping):
            refuse_code(value, name, depth + 1)


def declared(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings of these names; what a library noted next to them is left out.

    Raises:
        ValueError: One is a number or a list that is larger than any network's.
    """
    # `diffusers` lists there what the user left to the defaults, which may have changed since.
    defaults = settings.get("_use_default_values") or ()
    found = {name: settings[name] for name in names if name in settings and name not in defaults}
    for name, value in found.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise ValueError(f"{name} is {number}, and no network has more than {_LARGEST} of anything")
        if isinstance(value, list) and len(value) > _LONGEST:
            raise ValueError(f"{name} has {len(value)} entries, and no network more than {_LONGEST}")
    return found


def arguments_of(kind: type) -> list[str]:
    """Names of the arguments with which a class is made."""
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]
