"""Speech and a portrait's face in, the motion of that face out.

Letters of shapes: N samples of the speech, T frames of a model, F frames of the result, D width of speech features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoding import decode, generate
from talkinghead.models.speech.encoder import Encode, encode_long, frame_rate, normalise, num_frames
from talkinghead.motion.motion import Motion
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.smoothing import moving_average, narrow_average
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.timebase import SAMPLE_RATE

_BLOCK = 250
"""Number of poses decoded between two reports of progress."""


class AudioToLandmarks:
    """Audio2Mesh and Audio2Pose, for speech of any length.

    Audio2Mesh gives offsets, which are added to the reference's mesh as if the reference were neutral. Audio2Pose gives
    the head's motion relative to the reference's pose. The networks' memory is bounded, whatever the length. Nothing is
    random: the same arguments give the same arrays.
    """

    def __init__(self, audio2mesh: Audio2Mesh | None, audio2pose: Audio2Pose | None = None) -> None:
        """Put the models together, in evaluation mode.

        Args:
            audio2mesh: Model of the mesh, on the device of its computation; None: only `predict_pose` can be used.
            audio2pose: Model of the head's motion, on the device of its computation; None: that motion must be given.
        """
        self.audio2mesh = None if audio2mesh is None else audio2mesh.eval()
        self.audio2pose = None if audio2pose is None else audio2pose.eval()

    def num_frames(self, samples: np.ndarray, fps: float | None = None) -> int:
        """Number F of frames of the result.

        Args:
            samples: Speech `[N]` at 16 kHz.
            fps: Frame rate of the result; None: the mesh model's.

        Raises:
            ValueError: No samples, or no frame rate and no mesh model.
        """
        if not len(samples):
            raise ValueError("the speech has no samples")
        return num_frames(len(samples), fps or self._mesh_model().fps)

    def __call__(
        self,
        samples: np.ndarray,
        *,
        reference_mesh: np.ndarray,
        reference_pose_matrix: np.ndarray,
        width: int,
        height: int,
        pose: np.ndarray | Literal["audio", "still"] = "audio",
        identity: int = 0,
        pose_gain: float | None = None,
        pose_smoothing: int | None = None,
        mesh_smoothing: int | None = None,
        fps: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> Motion:
        """Motion of a portrait's face for speech.

        Args:
            samples: Speech, float mono `[N]` at 16 kHz, at least one sample.
            reference_mesh: Neutral mesh of the portrait, `[468, 3]` in cm.
            reference_pose_matrix: Head pose of the portrait, `[4, 4]`.
            width: Width of the portrait in pixels.
            height: Height of the portrait in pixels.
            pose: Head motion: `audio` (by Audio2Pose), `still`, or given as `[F, 6]` degrees and cm relative to the
                portrait, at the result's frame rate (`num_frames` of them).
            identity: Row of Audio2Pose's identity embedding, the person whose head motion `audio` has.
            pose_gain: Factor of the angles of `audio`; None: the model's.
            pose_smoothing: Number of frames (odd) of the moving average over the pose of `audio`; None: the model's.
            mesh_smoothing: Number of frames (odd) of the moving average over the mesh offsets; None: the model's.
            fps: Frame rate of the result; None: the mesh model's. Models of other rates are interpolated in time.
            progress: Progress callback; None: none.

        Returns:
            Motion of F frames with meshes.

        Raises:
            ValueError: No samples, an identity or pose that does not fit, or weights that give no finite motion.
        """
        mesh_model = self._mesh_model()
        rate = fps or mesh_model.fps
        count = self.num_frames(samples, rate)

        # Head motion at the result's frame rate: given, none, or predicted from the speech. Done first, so that a wrong
        # shape or identity is refused before the mesh is computed.
        if isinstance(pose, np.ndarray):
            if pose.shape != (count, 6):
                raise ValueError(f"the head motion has shape {pose.shape}, must be ({count}, 6) for this speech")
        elif pose == "still":
            pose = np.zeros((count, 6))
        else:
            moved = self.predict_pose(
                samples, identity=identity, gain=pose_gain, smoothing=pose_smoothing, progress=progress
            )
            assert self.audio2pose is not None
            pose = resample_frames(moved, self.audio2pose.fps, rate, count)

        # Mesh at the result's frame rate: the portrait's own, moved by the predicted offsets.
        offsets = self.predict_offsets(samples, smoothing=mesh_smoothing, progress=progress)
        mesh = resample_frames(offsets, mesh_model.fps, rate, count)
        neutral = np.asarray(reference_mesh, dtype=np.float32)
        mesh += neutral  # [F, 468, 3]

        if not (np.isfinite(mesh).all() and np.isfinite(pose).all()):
            raise ValueError("the predicted motion holds values that are not finite: the weights are damaged")
        return Motion(
            pose_matrix=placed_pose(pose, reference_pose_matrix),
            neutral=neutral,
            mesh=mesh,
            valid=np.ones(count, bool),
            fps=rate,
            width=width,
            height=height,
        )

    def _mesh_model(self) -> Audio2Mesh:
        if self.audio2mesh is None:
            raise ValueError("a moving mesh needs an Audio2Mesh model")
        return self.audio2mesh

    @torch.inference_mode()
    def predict_offsets(
        self, samples: np.ndarray, *, smoothing: int | None = None, progress: ProgressCallback | None = None
    ) -> np.ndarray:
        """Offsets from the neutral mesh, at Audio2Mesh's frame rate.

        Args:
            samples: Speech, float mono `[N]` at 16 kHz.
            smoothing: Number of frames (odd) of the moving average; None: the model's.
            progress: Progress callback; None: none.

        Returns:
            Offsets in cm, float32 `[T, 468, 3]`.

        Raises:
            ValueError: There is no Audio2Mesh.
        """
        # In windows, so that memory does not grow with the length of the speech.
        model = self._mesh_model()
        encode = _with_progress(model, "mesh from speech", num_frames(len(samples), model.fps), progress)
        offsets = encode_long(encode, _prepared(samples, model), model.fps).float().cpu().numpy()
        window = model.smoothing if smoothing is None else smoothing
        return offsets if window == 1 else narrow_average(offsets, window)

    @torch.inference_mode()
    def predict_pose(
        self,
        samples: np.ndarray,
        *,
        identity: int = 0,
        gain: float | None = None,
        smoothing: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> np.ndarray:
        """Head motion relative to the reference, at Audio2Pose's frame rate.

        Args:
            samples: Speech, float mono `[N]` at 16 kHz.
            identity: Row of the identity embedding.
            gain: Factor of the angles; None: the model's.
            smoothing: Number of frames (odd) of the moving average; None: the model's.
            progress: Progress callback; None: none.

        Returns:
            Three angles in degrees and a translation in cm, float64 `[T, 6]`.

        Raises:
            ValueError: There is no Audio2Pose, or no such identity.
        """
        model = self.audio2pose
        if model is None:
            raise ValueError("head motion from the speech needs an Audio2Pose model")
        prepared = _prepared(samples, model)

        # Poses are decoded one after another, each from those before. With `restart` (AniPortrait's way) every chunk is
        # encoded and decoded for itself; otherwise speech is encoded in windows, and the decoder keeps its state.
        if model.context is None and model.chunking == "restart":
            raw = generate(model, prepared, identity)
        else:
            total = num_frames(len(samples), model.fps)
            encode = _with_progress(model.encode, "pose from speech", total, progress)
            memory = encode_long(encode, prepared, model.fps)[None]  # [1, T, D]
            with _one_thread():
                raw = _decoded(model, memory, identity, progress)

        # The gain applies to the angles; the translation stays as it is.
        pose = raw.double().cpu().numpy()
        pose[:, :3] *= model.angle_gain if gain is None else gain
        return moving_average(pose, model.smoothing if smoothing is None else smoothing)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which PyTorch computes on one CPU thread.

    A pose takes some hundred small products, after each of which threads would synchronise: on two busy cores that
    costs twenty times what it saves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _decoded(model: Audio2Pose, memory: torch.Tensor, identity: int, progress: ProgressCallback | None) -> torch.Tensor:
    """Poses `[T, 6]` from encoded speech `[1, T, D]`, decoded in blocks, so that progress can be reported."""
    total = memory.shape[1]
    parts: list[torch.Tensor] = []
    state = None
    for first in range(0, total, _BLOCK):
        if progress is not None:
            progress("head motion", first, total)
        # The decoder's state goes from block to block, so the blocks do not change the result.
        part = memory[:, first : first + _BLOCK]
        poses, state = decode(model, part, identity, state=state, final=first + _BLOCK >= total)
        parts.append(poses[0])
    return torch.cat(parts)


def _prepared(samples: np.ndarray, model: Audio2Mesh | Audio2Pose) -> torch.Tensor:
    """Speech `[N]` normalised over the whole recording, before it is cut into windows, and padded to whole frames.

    It is padded because the encoders' features are stretched over the frames: with a partly filled last frame every
    other frame would fall between two features, which never happens in training on whole frames. At rates whose frames
    are no whole number of samples (30 fps) it happens in training too, and the speech stays as it is.
    """
    normal = normalise(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)))
    per_frame = SAMPLE_RATE / frame_rate(model.fps)
    if per_frame.denominator == 1:
        normal = functional.pad(normal, (0, num_frames(len(samples), model.fps) * int(per_frame) - len(samples)))
    return normal.to(model.device)


def _with_progress(encode: Encode, stage: str, total: int, progress: ProgressCallback | None) -> Encode:
    """Encoder that also reports how many of `total` frames are done.

    Windows overlap, so the number of encoded frames can exceed the total; it is limited to it.
    """
    if progress is None:
        return encode
    progress(stage, 0, total)
    done = 0

    def encode_and_report(piece: torch.Tensor, frames: int) -> torch.Tensor:
        nonlocal done
        result = encode(piece, frames)
        done = min(done + frames, total)
        progress(stage, done, total)
        return result

    return encode_and_report
