"""`infer pairs`: which drivers go with which renderers, and what each pair loses."""

from __future__ import annotations

from infer.drivers.chosen import driver_classes
from infer.own_options import listed_options
from talkinghead.pipelines import registry
from talkinghead.pipelines.protocols import pair


def pairs_table() -> str:
    """A line for each driver and renderer: their conversions with what is lost, or why they do not fit.

    Then a line for each option of those of other packages.

    Asked of classes: weights of another frame rate, or AniPortrait's, add or change a step; a video's sidecar names the
    steps that were taken.
    """
    drivers = driver_classes()
    renderers = {name: registry.renderer_class(name) for name in registry.renderer_names()}
    rows = [("driver", "renderer", "between them, and what is lost")]
    for driver in drivers.values():
        for renderer in renderers.values():
            try:
                steps = "; ".join(map(str, pair(driver, renderer).conversions)) or "nothing"
            except ValueError as error:
                steps = f"does not fit: {error}"
            rows.append((driver.name, renderer.name, steps))
    options = [
        f"{kind.name}: --{what}-option {text}"
        for what, kinds in (("driver", drivers), ("renderer", renderers))
        for kind in kinds.values()
        for text in listed_options(kind)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows]
    return "\n".join(lines + (["", "options of other packages:", *options] if options else []))
