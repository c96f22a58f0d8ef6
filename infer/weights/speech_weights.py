"""Weights of a model for speech: found and checked first, loaded later, and described in the sidecar.

A user may name a folder that a training exported (`pretrained_model/`) or `infer convert` made, the RUN folder of a
training, a published file (`audio2mesh.pt`, `audio2pose.pt`, or a .safetensors of it), or a folder that holds these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from infer.weights.adapters import AdapterPlace
from infer.weights.kept import kept
from infer.weights.licences import published_licence, trained_licence
from infer.weights.published_files import PUBLISHED_FPS
from talkinghead.models.network_settings import read_settings
from talkinghead.motion.expression import EXPRESSION_FILE, ExpressionBasis
from talkinghead.motion.speakers import FILE as SPEAKERS_FILE
from talkinghead.motion.speakers import Speakers
from talkinghead.provenance import hash_file
from talkinghead.timebase import FPS

if TYPE_CHECKING:
    from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
    from talkinghead.models.audio2lmk.audio2pose import Audio2Pose

Kind = Literal["audio2mesh", "audio2pose"]
Chunking = Literal["continue", "restart"]
"""Decoding of long speech by the pose model: continuously, or every 5 s anew from pose 0, as its authors do."""
CLASSES: dict[Kind, str] = {"audio2mesh": "Audio2Mesh", "audio2pose": "Audio2Pose"}
"""Class of each kind, as `config.json` names it."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
ORIGIN_FILE = "origin.json"
"""File in a folder of converted weights that names the published file they come from."""
EXPORT_FOLDER = "pretrained_model"
PUBLISHED_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

Model = TypeVar("Model")


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """Place of weights; nothing is loaded."""

    kind: Kind
    path: Path
    """Folder of ours, or a published file."""
    adapter: AdapterPlace | None = None
    """Adapter that is merged into the weights when they are loaded."""

    @property
    def is_file(self) -> bool:
        """Whether `path` is a published file."""
        return self.path.is_file()

    @property
    def published(self) -> bool:
        """Whether these are AniPortrait's weights, from its file or converted."""
        return self.is_file or (self.path / ORIGIN_FILE).is_file()

    @property
    def fps(self) -> float:
        """Frame rate of the model, by its configuration; raises `ValueError` where that is damaged."""
        if self.is_file:
            return PUBLISHED_FPS
        fps = read_settings(self.path / CONFIG_FILE, "JSON").get("fps", FPS)
        if not isinstance(fps, int | float) or not 0 < fps < 1000:
            raise ValueError(f"{self.path / CONFIG_FILE} gives the frame rate {fps!r}: copy the folder again")
        return float(fps)


@dataclass(frozen=True, kw_only=True)
class Weights(Generic[Model]):
    """A model with its weights, and the files next to it."""

    place: WeightsPlace
    model: Model
    published: bool
    """Whether these are AniPortrait's weights, from its file or converted: landmarks are then projected its way."""
    sha256: str
    """Hash of the weight file."""
    speakers: Speakers | None
    """Speakers that the model was trained on; None where they are not known."""
    expression: ExpressionBasis | None
    """Basis of the blendshapes, for `--neutralise`; None where the folder has none."""

    def provenance(self) -> dict[str, Any]:
        """Path, hash, origin and licence of the weights, for the sidecar."""
        found: dict[str, Any] = {"path": str(self.place.path), "sha256": self.sha256}
        if self.published:
            found |= {"origin": "published", "licence": published_licence([self.place.kind])}
        else:
            found |= {"origin": "trained", "licence": trained_licence(self.place.path)}
        adapter = self.place.adapter
        return found if adapter is None else found | {"adapter": adapter.provenance()}


def not_there(what: str, path: Path) -> ValueError:
    """Error about weights that are not where the user says; in a URI that was made a path one slash is missing."""
    if str(path).partition("/")[0].endswith(":"):
        return ValueError(f"{what} are named by a URI, and are read from a folder: copy them out of the store first")
    return ValueError(f"{what} {path} are not there")


def find_weights(kind: Kind, path: Path) -> WeightsPlace:
    """Find the weights of one model under a path that the user gave.

    Raises:
        ValueError: Nothing is there, or another model; the message tells what is wanted.
    """
    # A file: ours counts as its folder, any other must be a published one.
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        path = path.parent  # the file out of a folder of ours is the folder
    if path.is_file():
        if path.suffix not in PUBLISHED_SUFFIXES:
            raise ValueError(f"{path} is no file of {kind} weights: wanted is {kind}.pt, or a folder")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: copy or download it again")
        return WeightsPlace(kind=kind, path=path)
    if not path.exists():
        raise not_there(f"the {kind} weights", path)
    # A folder: a model of ours in it, in its export, or in the folder of this kind; then a published file.
    for folder in (path, path / EXPORT_FOLDER, path / kind, path / kind / EXPORT_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            found = _class_name(folder / CONFIG_FILE)
            if found == CLASSES[kind]:
                if not (folder / WEIGHTS_FILE).is_file():
                    raise ValueError(f"{folder} has a {CONFIG_FILE} but no {WEIGHTS_FILE}: copy the folder again")
                return WeightsPlace(kind=kind, path=folder)
            # Another model of ours is an error; a `config.json` of something else (a training) is passed over.
            if found is not None:
                raise ValueError(f"{folder} holds {found}, but {CLASSES[kind]} is wanted")
    # Published files come last: a converted folder next to one is what the user made of it.
    for suffix in PUBLISHED_SUFFIXES:
        if (file := path / f"{kind}{suffix}").is_file():
            return WeightsPlace(kind=kind, path=file)
    raise ValueError(
        f"no {kind} weights in {path}: wanted is a folder with {CONFIG_FILE} and {WEIGHTS_FILE} (a training's"
        f" {EXPORT_FOLDER}, or made by python -m infer convert), or {kind}.pt"
    )


def _class_name(config: Path) -> str | None:
    """Class of the model that a `config.json` describes; None for a training's own configuration."""
    try:
        name = read_settings(config, "JSON").get("_class_name")
    except OSError as error:
        raise ValueError(f"{config} cannot be read ({error.strerror}): copy the folder again") from error
    return name if isinstance(name, str) else None


@kept
def load_audio2mesh(place: WeightsPlace, device: str = "cpu") -> Weights[Audio2Mesh]:
    """Load an Audio2Mesh in evaluation mode.

    Raises:
        ValueError: A damaged or truncated file, or weights of another shape; the message names them.
    """
    assert place.kind == "audio2mesh"
    return cast("Weights[Audio2Mesh]", _load(place, device))


@kept
def load_audio2pose(place: WeightsPlace, device: str = "cpu") -> Weights[Audio2Pose]:
    """Load an Audio2Pose in evaluation mode; raises like `load_audio2mesh`."""
    assert place.kind == "audio2pose"
    return cast("Weights[Audio2Pose]", _load(place, device))


def _load(place: WeightsPlace, device: str) -> Weights[Any]:
    """A published file, which has no speakers and no basis, or a folder of ours with what its training left there."""
    # Imported here, because finding weights does without PyTorch.
    if place.is_file:
        from talkinghead.models.audio2lmk.published import load_published

        model, _ = load_published(place.kind, place.path)
        if place.adapter is not None:
            place.adapter.merge(model, str(place.path))
        on_device: Any = model
        return Weights(
            place=place,
            model=on_device.to(device),
            published=True,
            sha256=hash_file(place.path),
            speakers=None,
            expression=None,
        )

    folder = place.path
    basis = folder / EXPRESSION_FILE
    loaded: Any = _class_of(place.kind).from_pretrained(folder)
    if place.adapter is not None:
        place.adapter.merge(loaded, str(folder))
    return Weights(
        place=place,
        model=loaded.to(device).eval(),
        published=place.published,
        sha256=hash_file(folder / WEIGHTS_FILE),
        speakers=Speakers.load(folder) if (folder / SPEAKERS_FILE).is_file() else None,
        expression=ExpressionBasis.load(basis) if basis.is_file() else None,
    )


def _class_of(kind: Kind) -> Any:
    """Class of a kind of model; imported late, as it loads PyTorch."""
    if kind == "audio2mesh":
        from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh

        return Audio2Mesh
    from talkinghead.models.audio2lmk.audio2pose import Audio2Pose

    return Audio2Pose
