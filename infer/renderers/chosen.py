"""The renderer that the options of `infer animate` name."""

from __future__ import annotations

from infer.renderers.landmarks import LandmarkRendering
from infer.renderers.lmk2video import Lmk2VideoRendering
from infer.renderers.other import OtherRendering
from infer.renderers.rendering import Rendering
from infer.request import AnimateRequest
from talkinghead.pipelines import registry


def chosen_rendering(request: AnimateRequest) -> Rendering:
    """What shows the motion; raises `ValueError` for a name that nobody has."""
    if request.renderer == Lmk2VideoRendering.name:
        return Lmk2VideoRendering(request, speaks=True)
    if request.renderer == LandmarkRendering.name:
        return LandmarkRendering(request)
    return OtherRendering(registry.renderer_class(request.renderer)(), request)
