"""`python -m annotate models`: find or fetch the face model."""

from __future__ import annotations

import logging
import sys

import tyro

from talkinghead.face.resolve import resolve_face_model


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 (it failed) or 2 (wrong arguments)."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    return tyro.extras.subcommand_cli_from_dict(
        {"models": print_model}, prog="python -m annotate", description="Face landmarks of clips.", args=arguments
    )


def print_model() -> int:
    """Find the face model, or fetch it into the user's cache, and print its path.

    Looks in the folder that TALKINGHEAD_MODELS names, then in the cache, then tries MediaPipe's official download, then
    the 468-point model inside a MediaPipe wheel on the package registry. TALKINGHEAD_FACE_MODEL=official or fallback
    allows only that one.
    """
    try:
        model = resolve_face_model()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{model.name}, {model.num_landmarks} landmarks, sha256 {model.sha256}", file=sys.stderr)
    print(model.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
