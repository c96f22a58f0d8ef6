"""The embedded sample: a few seconds of talking-head video that our own code draws, without any download.

A public-domain portrait that ships inside scikit-image is made to talk: a mesh opens its mouth with synthesised speech,
the eyes blink, the head moves. Three framings give three clips of different size, rate and container; a clip without a
face and a broken file show how inputs that cannot become samples are reported. Nothing later in the pipeline knows that
it is a sample: its faces are found like any other.
"""

from __future__ import annotations

from pathlib import Path

SEED = 20_240_501
"""Default seed of the speech and the motion."""


def make_sample(out: Path, *, seed: int = SEED) -> Path:
    """Write the sample's video files into the folder `out`; the same seed gives the same images and sound.

    Args:
        out: Folder; made when it is not there. Files of the same names in it are replaced.
        seed: Seed of the speech and the motion.

    Returns:
        `out`.

    Raises:
        ValueError: `out` is a file, or cannot be written.
    """
    # Imported late, since scikit-image and PyAV take long to load.
    from ingest.sample.scene import write_sources

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_sources(out, seed)
    except OSError as error:
        raise ValueError(f"cannot write the sample to {out}: {error.strerror or error}; name another folder") from error
    return out
