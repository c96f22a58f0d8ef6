"""`python -m annotate models`: find or fetch the face model, and the weights for speech activity."""

from __future__ import annotations

import logging
import sys

from talkinghead.face.resolve import resolve_face_model
from talkinghead.models.speech.activity_weights import say_where_activity_weights_are
from talkinghead.runtime.command_line import run_command_line

log = logging.getLogger(__name__)


def models() -> str:
    """Find the face model, or fetch it into the user's cache, and print its path.

    Looks in the folder that TALKINGHEAD_MODELS names, then in the cache, then tries MediaPipe's official download, then
    the 468-point model inside a MediaPipe wheel on the package registry. TALKINGHEAD_FACE_MODEL=official or fallback
    allows only that one. The weights for the column speech_activity, which nothing else needs, are looked for next to
    them, then in the silero-vad wheel on the package registry; without them there is a warning.
    """
    model = resolve_face_model()
    log.info("%s, %d landmarks, sha256 %s", model.name, model.num_landmarks, model.sha256)
    say_where_activity_weights_are()
    return str(model.path)


COMMANDS = (models,)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return run_command_line(COMMANDS, arguments, prog="python -m annotate", about="Face landmarks of clips.")


if __name__ == "__main__":
    sys.exit(main())
