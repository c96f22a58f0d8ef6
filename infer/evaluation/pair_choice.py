"""A pair as `--pair DRIVER+RENDERER` names it: which driver and renderer, with which weights.

Both are named as for `infer animate`; a folder of weights stands for the driver or renderer that it holds. The pair is
run with the options of `infer animate`, so that its frames are those that users get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from infer.drivers.chosen import chosen_driving, driver_classes
from infer.drivers.motion_file import FileDriver
from infer.drivers.speech import SpeechDriving
from infer.drivers.still import StillDriving
from infer.drivers.video import VideoDriving
from infer.evaluation.given_motion import GivenMotionDriving
from infer.evaluation.held_out_clip import DrivingFiles
from infer.output_files import place_name
from infer.renderers.chosen import chosen_rendering
from infer.renderers.lmk2video import Lmk2VideoRendering
from infer.request import AnimateRequest
from infer.weights.licences import published_licence, trained_licence
from infer.weights.pipeline_weights import find_pipeline, provenance
from infer.weights.speech_weights import WEIGHTS_FILE, Kind, find_weights
from talkinghead.pipelines import registry
from talkinghead.pipelines.protocols import Pairing, pair
from talkinghead.provenance import hash_file
from talkinghead.timebase import FPS

_WITHOUT_FILE = Path("evaluation")  # of options that must be given and are not looked at here


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """What all pairs of an evaluation share."""

    size: tuple[int, int]
    """Width and height of the frames in pixels."""
    steps: int
    guidance: float
    device: Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """A driver and a renderer with their weights; nothing is loaded."""

    label: str
    """Name in tables: `DRIVER+RENDERER`, with the names of folders that were given."""
    driver: str
    """Name of the driver."""
    renderer: str
    """Name of the renderer."""
    driver_weights: Path | None
    """Folder of the driver's weights; None: it has none."""
    renderer_weights: Path | None
    """Folder of the renderer's weights; None: it has none."""

    @classmethod
    def parse(cls, text: str, weights: Path | None) -> PairChoice:
        """Pair of the text of an option.

        Args:
            text: `DRIVER+RENDERER`, each a name or a folder of weights.
            weights: Folder of the weights of those that are named.

        Raises:
            ValueError: The text has another form, or names something that is not there.
        """
        driver, _, renderer = text.partition("+")
        if not driver or not renderer or "+" in renderer:
            raise ValueError(
                f"--pair is {text!r}, must be DRIVER+RENDERER, each a name or a folder (without a + in it)"
            )
        driver_name, driver_folder = _driver(driver, weights)
        renderer_name, renderer_folder = _renderer(renderer, weights)
        shown = [
            name if name == given else f"{name}:{place_name(Path(given))}"
            for name, given in ((driver_name, driver), (renderer_name, renderer))
        ]
        return cls(
            label="+".join(shown),
            driver=driver_name,
            renderer=renderer_name,
            driver_weights=driver_folder,
            renderer_weights=renderer_folder,
        )

    @property
    def driver_label(self) -> str:
        """Name of the driver in tables."""
        return self.label.partition("+")[0]

    @property
    def renderer_label(self) -> str:
        """Name of the renderer in tables."""
        return self.label.partition("+")[2]

    @property
    def speaks(self) -> bool:
        """Whether a sound drives it, or may do so."""
        return self.driver not in (VideoDriving.name, StillDriving.name, GivenMotionDriving.name)

    @property
    def follows(self) -> bool:
        """Whether a sound or a video drives it, so that another one can be put in its place."""
        return self.driver not in (StillDriving.name, GivenMotionDriving.name)

    @property
    def needs_images(self) -> bool:
        """Whether its driver reads a video."""
        return self.follows and self.driver != SpeechDriving.name

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the renderer was made for; None: any."""
        if self.renderer == Lmk2VideoRendering.name:
            return find_pipeline(self._pipeline).size
        size = registry.renderer_class(self.renderer).size
        return (size.width, size.height) if size.width and size.height else None

    def request(self, files: DrivingFiles, settings: RenderSettings, *, seed: int, name: str) -> AnimateRequest:
        """Options of `infer animate` for one clip.

        Args:
            files: What drives the portrait.
            settings: What all pairs share.
            seed: Seed of everything random.
            name: Name of the clip for messages.
        """
        # Speech moves the head where there are weights for it; a driving head is taken at its own angles, because the
        # truth is the same person in the same images.
        pose = {SpeechDriving.name: "keep" if self.moves_head else "still", VideoDriving.name: "absolute"}
        return AnimateRequest(
            reference=Path(name),
            output=_WITHOUT_FILE,
            weights=self.renderer_weights,
            audio2mesh=self.driver_weights,
            audio2pose=self.driver_weights if self.moves_head else None,
            audio=files.speech,
            driving=files.video,
            motion=files.video,
            driver=self.driver,
            renderer=self.renderer,
            pose=pose.get(self.driver, "keep"),
            crop="none",
            fps=float(FPS),
            width=settings.size[0],
            height=settings.size[1],
            steps=settings.steps,
            guidance=settings.guidance,
            device=settings.device,
            seed=seed,
        )

    @property
    def moves_head(self) -> bool:
        """Whether the driver has weights that move the head by speech."""
        return self.driver_weights is not None and any(self.driver_weights.glob("audio2pose*"))

    def check(self, settings: RenderSettings) -> Pairing:
        """What lies between the two; raises `ValueError` where weights are missing or the two do not fit."""
        request = self.request(DrivingFiles(speech=_WITHOUT_FILE, video=_WITHOUT_FILE), settings, seed=0, name="")
        rendering = chosen_rendering(request)
        driving: Any = GivenMotionDriving if self.driver == GivenMotionDriving.name else chosen_driving(request)
        # By their names first; then with what their weights say. Only speech's driver has weights to find: for the
        # others, finding looks for the file of a clip.
        pair(driving, rendering)
        folder = rendering.find()
        if self.driver == SpeechDriving.name:
            driving.find(folder)
        rendering.meet(driving.gives)
        return pair(driving, rendering, fps=FPS)

    def about(self) -> dict[str, Any]:
        """Origin, hash and licence of the weights, for the record, with folders by their names; and the versions of
        other packages that the two are of."""
        names = {registry.DRIVERS_GROUP: self.driver, registry.RENDERERS_GROUP: self.renderer}
        entries = [entry for group, name in names.items() for entry in entry_points(group=group, name=name)]
        packages = {entry.dist.name: entry.dist.version for entry in entries if entry.dist is not None}
        found: dict[str, Any] = {
            "driver": self.driver,
            "renderer": self.renderer,
            "packages": packages,
            "weights": {},
        }
        for kind in self._speech_models:
            assert self.driver_weights is not None
            place = find_weights(kind, self.driver_weights)
            found["weights"][kind] = {
                "path": place_name(place.path),
                "sha256": hash_file(place.path if place.is_file else place.path / WEIGHTS_FILE),
                "licence": published_licence([kind]) if place.published else trained_licence(place.path),
            }
        if self.renderer == Lmk2VideoRendering.name:
            about = provenance(find_pipeline(self._pipeline))
            found["weights"]["pipeline"] = about | {"path": place_name(Path(about["path"]))}
        return found

    def weight_folders(self) -> dict[str, Path]:
        """Folders in which the weights lie, by model."""
        found = {}
        for kind in self._speech_models:
            assert self.driver_weights is not None
            found[kind] = find_weights(kind, self.driver_weights).path
        if self.renderer == Lmk2VideoRendering.name:
            found[Lmk2VideoRendering.name] = find_pipeline(self._pipeline).path
        return found

    @property
    def _speech_models(self) -> list[Kind]:
        """Models that speech is driven by; none for other drivers."""
        if self.driver != SpeechDriving.name:
            return []
        return ["audio2mesh", "audio2pose"] if self.moves_head else ["audio2mesh"]

    @property
    def _pipeline(self) -> Path:
        if self.renderer_weights is None:
            raise ValueError("the renderer lmk2video needs weights: name their folder in --pair, or give --weights")
        return self.renderer_weights


def parse_pairs(texts: Sequence[str], weights: Path | None) -> list[PairChoice]:
    """All pairs of an evaluation; raises `ValueError` as `PairChoice.parse`, and where two have one name.

    Nor may two drivers or two renderers: pairs share the baselines of a renderer by its name.
    """
    pairs = [PairChoice.parse(text, weights) for text in texts]
    labels = [choice.label for choice in pairs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"two pairs would be called {twice[0]} in the table: give a pair once, or rename a folder")
    for part, named in (
        ("drivers", [(choice.driver_label, choice.driver_weights) for choice in pairs]),
        ("renderers", [(choice.renderer_label, choice.renderer_weights) for choice in pairs]),
    ):
        folders: dict[str, Path | None] = {}
        for name, folder in named:
            place = folder and folder.resolve()
            if folders.setdefault(name, place) != place:
                raise ValueError(f"two {part} would be called {name} in the table: rename a folder")
    return pairs


def _driver(given: str, weights: Path | None) -> tuple[str, Path | None]:
    """Name and weights of a driver."""
    names = [GivenMotionDriving.name, *(name for name in driver_classes() if name != FileDriver.name)]
    if given in names:
        if given == SpeechDriving.name and weights is None:
            raise ValueError(f"the driver {given} needs weights: name their folder in --pair, or give --weights")
        return given, weights if given == SpeechDriving.name else None
    if given == FileDriver.name:
        raise ValueError("a saved motion is one motion, and cannot follow the clips: take another driver than file")
    folder = Path(given)
    if not folder.exists():
        raise ValueError(f"--pair names {given!r}, which is no folder and none of the drivers {', '.join(names)}")
    find_weights("audio2mesh", folder)
    return SpeechDriving.name, folder


def _renderer(given: str, weights: Path | None) -> tuple[str, Path | None]:
    """Name and weights of a renderer."""
    names = registry.renderer_names()
    if given in names:
        return given, weights if given == Lmk2VideoRendering.name else None
    folder = Path(given)
    if not folder.exists():
        raise ValueError(f"--pair names {given!r}, which is no folder and none of the renderers {', '.join(names)}")
    find_pipeline(folder)
    return Lmk2VideoRendering.name, folder
