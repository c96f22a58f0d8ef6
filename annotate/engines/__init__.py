"""Landmark engines: MediaPipe Tasks, and the same networks run directly through LiteRT.

    litert            the detector on every frame, like MediaPipe's image mode: agrees with it to 0.03 px
    litert-tracking   the region follows the face: calmer and faster, other landmarks than image mode (1.6 px)
    tasks             MediaPipe Tasks in video mode: tracks and smooths; official bundle only
    tasks-image       MediaPipe Tasks in image mode; official bundle only

Measured on eight real clips (1540 frames, 224 px to 1920x1080, decoding left out), distances in pixels at 512 px of the
longer side, jitter = mean second difference of the landmarks, CPU = process time on one core that was shared (first 40
frames of each clip, median of three rounds in turns):

    engine            model   to tasks-image: mean   p95    max   blendshapes   jitter   CPU ms/frame
    tasks-image       478                       -      -      -             -     1.86          11.0
    tasks             478                    2.07   4.85   23.7        0.0414     1.19           8.8
    litert            478                   0.029   0.07    1.1        0.0006     1.86           8.1
    litert-tracking   478                    1.64   4.16   24.2        0.0399     1.52           6.5
    litert            468                    2.50   5.62   24.9             -     2.20           3.0
    litert-tracking   468                    2.84   6.18   29.2             -     1.72           1.6

`litert` is the default: it gives what published systems were trained on (AniPortrait annotates with image mode) at less
CPU than either mode of Tasks, runs either model, leaks no memory, and where two faces compete it stays with one (image
mode changes between them 24 times in six seconds of two people side by side). `litert-tracking` costs a fifth less
again and is much calmer on small faces (jitter 0.5 instead of 2.1 px where the face is 15 % of the height); the price
is that its landmarks, like those of `tasks`, differ from image mode's.
"""

from __future__ import annotations

from annotate.landmarks import LandmarkEngine
from talkinghead.face.model import FaceModel

ENGINES = ("litert", "litert-tracking", "tasks", "tasks-image")
DEFAULT_ENGINE = "litert"


def check_engine(name: str, model: FaceModel) -> None:
    """Raise `ValueError` when there is no such engine or it cannot run this model; loads nothing."""
    if name not in ENGINES:
        raise ValueError(f"no landmark engine {name!r}; there are {', '.join(ENGINES)}")
    if name.startswith("tasks") and model.task_file is None:
        raise ValueError(
            f"the {name} engine needs MediaPipe's face_landmarker.task, but the model at hand is {model.name}: "
            "use the litert engine, or put that file into a folder and set TALKINGHEAD_MODELS to it"
        )


def make_engine(name: str, model: FaceModel) -> LandmarkEngine:
    """The engine called `name`, ready for any number of clips. It belongs to the thread that made it.

    Args:
        name: One of `ENGINES`.
        model: Face model that the engine runs.

    Raises:
        ValueError: No such engine, or it cannot run this model.
    """
    check_engine(name, model)
    # Each engine is imported here only: the command line reads `ENGINES` without loading its libraries.
    if name in ("litert", "litert-tracking"):
        from annotate.engines.litert import LitertEngine

        return LitertEngine(model, tracking=name == "litert-tracking")
    from annotate.engines.tasks import TasksEngine  # mediapipe takes a second to import

    return TasksEngine(model, "image" if name == "tasks-image" else "video")
