"""`identity_drift`: how far the shape of the face is another one from some frame of the clip on.

Metric meshes have the head's pose removed; what is left is the person's shape, the expression, and what the landmark
model gets wrong in a turned head. Expression is kept out by the vertices: forehead, temples, nose, cheekbones and the
corners of the eyes. The rest is kept out by looking for the most similar moments: the two parts of a clip of one person
have moments with the same expression and pose, those of two persons have none that look alike.

Over all parts of 80, 100 and 150 frames of 8 real clips it is 0.235 cm at most, 0.17 in the parts of 150 frames: the
landmark model bends a face that is turned, and a short clip may have no like moments. For two of these persons joined,
40 to 100 frames of each, it is above 0.2 cm in two thirds of the pairs and above 0.28 cm in half of them: persons whose
faces have like shapes are not told apart.
"""

from __future__ import annotations

import numpy as np

from talkinghead.geometry.face_regions import EYES, LOWER_FACE, NUM_VERTICES

_BROWS = (46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 276, 282, 283, 285, 293, 295, 296, 300, 334, 336)
_EYE_CORNERS = (33, 133, 263, 362)
STEADY: tuple[int, ...] = tuple(sorted({*range(NUM_VERTICES)} - {*LOWER_FACE, *EYES, *_BROWS} | {*_EYE_CORNERS}))
"""Vertices that hardly move with expression: forehead, temples, nose, cheekbones, corners of the eyes."""

WINDOW = 10
"""Frames with a face that one shape is the median of."""

_LEAST_WINDOWS = 2  # in each of the two parts
_FEWEST_WINDOWS = 8  # in a clip; among fewer there may be no like moments of one person
_MOST_WINDOWS = 120  # in a clip; windows of a longer one are longer
_ALIKE = 0.25  # share of the windows of one part that must have no like in the other


def identity_drift(mesh: np.ndarray, valid: np.ndarray) -> float | None:
    """Largest difference in shape, over all places to split the clip, of the face before and the face after.

    Args:
        mesh: Metric meshes, pose removed, `[F, 468, 3]` in cm.
        valid: `[F]` bool, True where the frame has a face.

    Returns:
        Distance in cm (root of the mean square over vertices), at least 0: of the shapes of one part from the nearest
        of the other part, less half of what neighbours within a part have. None with fewer than 80 frames with a face.
    """
    # Shapes of windows, [n, V, 3], in the middle of their own: translation is the pose's fault.
    faces = mesh[valid.astype(bool)][:, STEADY].astype(np.float64)
    length = max(WINDOW, -(-len(faces) // _MOST_WINDOWS))
    count = len(faces) // length
    if count < _FEWEST_WINDOWS:
        return None
    shapes = np.median(faces[: count * length].reshape(count, length, len(STEADY), 3), axis=1)
    shapes -= shapes.mean(axis=1, keepdims=True)
    # Distance of each shape from each other one, [n, n]; infinite from itself.
    flat = shapes.reshape(count, -1)
    squares = (flat**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0) / len(STEADY))
    np.fill_diagonal(apart, np.inf)
    # The place where the two parts have the least in common.
    drift = 0.0
    for split in range(_LEAST_WINDOWS, count - _LEAST_WINDOWS + 1):
        across = apart[:split, split:]
        nearest = min(np.quantile(across.min(axis=1), _ALIKE), np.quantile(across.min(axis=0), _ALIKE))
        within = [apart[:split, :split].min(axis=1), apart[split:, split:].min(axis=1)]
        drift = max(drift, float(nearest - np.median(np.concatenate(within)) / 2))
    return drift
