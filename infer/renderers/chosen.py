"""The renderer that the options of `infer animate` name."""

from __future__ import annotations

from infer.own_options import own_options
from infer.renderers.landmarks import LandmarkRendering
from infer.renderers.lmk2video import Lmk2VideoRendering
from infer.renderers.other import OtherRendering
from infer.renderers.rendering import Rendering
from infer.request import AnimateRequest
from talkinghead.pipelines import registry


def chosen_rendering(request: AnimateRequest) -> Rendering:
    """What shows the motion; raises `ValueError` for a name that nobody has, or an option that it does not."""
    if request.renderer_option and request.renderer in (Lmk2VideoRendering.name, LandmarkRendering.name):
        raise ValueError(f"--renderer-option is for a renderer of another package, not for {request.renderer}")
    if request.renderer == Lmk2VideoRendering.name:
        return Lmk2VideoRendering(request, speaks=True)
    if request.renderer == LandmarkRendering.name:
        return LandmarkRendering(request)
    other = registry.renderer_class(request.renderer)
    options = own_options(other, request.renderer_option, "--renderer-option")
    return OtherRendering(other(), options, request)
