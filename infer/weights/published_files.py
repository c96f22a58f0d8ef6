"""AniPortrait's published files of Lmk2Video: found in a folder, or named one by one; nothing is loaded.

The folder has the layout of AniPortrait's README: `denoising_unet.pth`, `reference_unet.pth`, `motion_module.pth`
and `pose_guider.pth` next to the folders `sd-vae-ft-mse` and `image_encoder`. A `.safetensors` of the same tensors may
replace each `.pth`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

PUBLISHED_SIZE = (512, 512)
"""Width and height of the images that the published networks were trained on, pixels."""

# Suffixes of the files, best first; and the names of each folder, the published one first.
_SUFFIXES = (".pth", ".safetensors", ".pt", ".bin", ".ckpt")
_FILES = ("denoising_unet", "reference_unet", "motion_module", "pose_guider")
PUBLISHED_FPS = 30.0
"""Frame rate of AniPortrait's videos and speech models."""
_FOLDERS = {"vae": ("sd-vae-ft-mse", "vae"), "image_encoder": ("image_encoder",)}
_NESTED = ("pretrained_model", "pretrained_weights")
"""Folders below the named one in which AniPortrait's program expects the files."""


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Paths of the six parts; each is checked to be there."""

    denoising_unet: Path
    reference_unet: Path
    motion_module: Path
    """Motion modules; also AnimateDiff's `mm_sd_v15_v2.ckpt`."""
    pose_guider: Path
    vae: Path
    """Folder of the VAE in the layout of `diffusers`."""
    image_encoder: Path
    """Folder of the CLIP image encoder in the layout of `transformers`."""

    def __post_init__(self) -> None:
        # A broken download is often empty; found here and not after minutes of loading.
        for name in _FILES:
            path: Path = getattr(self, name)
            if not path.is_file():
                raise ValueError(f"the {name} weights {path} are not a file: give {name}.pth, or a .safetensors of it")
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty: copy or download it again")
        for name in _FOLDERS:
            path = getattr(self, name)
            if not (path / "config.json").is_file():
                raise ValueError(f"the {name} folder {path} has no config.json: give the folder as it is published")

    @classmethod
    def named(cls, given: dict[str, Path | None], folder: Path | None = None) -> Self:
        """Find the parts: those that are named, and the others in a folder.

        Args:
            given: Paths of named parts by field; None where a part is not named.
            folder: Folder with the other parts; None: every part must be named.

        Raises:
            ValueError: A part is missing or is something else; the message lists all that are missing.
        """
        # What the user names has precedence over what the folder holds.
        found = {} if folder is None else _search(folder)
        found |= {name: path for name, path in given.items() if path is not None}
        missing = [field.name for field in fields(cls) if field.name not in found]
        if missing:
            place = "not named" if folder is None else f"missing in {folder}"
            listed = ", ".join(map(_wanted, missing))
            raise ValueError(f"of AniPortrait's files, these are {place}: {listed}; the whole set is wanted")
        return cls(**found)


def holds_published(folder: Path) -> bool:
    """Whether any of the four files is in a folder, or in one of `_NESTED` below it."""
    return any(name in _search(folder) for name in _FILES)


def _search(folder: Path) -> dict[str, Path]:
    """Parts that are found in a folder, by field; the folder itself comes before those below it."""
    found: dict[str, Path] = {}
    for place in (folder, *(folder / name for name in _NESTED)):
        for name in _FILES:
            file = next((place / (name + suffix) for suffix in _SUFFIXES if (place / (name + suffix)).is_file()), None)
            if file is not None:
                found.setdefault(name, file)
        for name, folders in _FOLDERS.items():
            below = next((place / known for known in folders if (place / known / "config.json").is_file()), None)
            if below is not None:
                found.setdefault(name, below)
    return found


def _wanted(name: str) -> str:
    """Published name of a part, for messages."""
    return f"{_FOLDERS[name][0]}/" if name in _FOLDERS else f"{name}.pth"
