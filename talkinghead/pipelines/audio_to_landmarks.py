"""Speech and a portrait's face in, the motion of that face out.

Letters of shapes: N samples of the speech, T frames of a model, F frames of the result, D width of speech features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoding import decode, restarted_parts
from talkinghead.models.speech.encoder import Encode, encode_parts, frame_rate, num_frames
from talkinghead.models.speech.recording import Recording
from talkinghead.motion.motion import Motion
from talkinghead.motion.parts import PART, averaged_parts, equal_parts, resampled_parts
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.smoothing import narrow_average
from talkinghead.motion.stream import MotionStream
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

    def num_frames(self, samples: np.ndarray | Recording, fps: float | None = None) -> int:
        """Number F of frames of the result.

        Args:
            samples: Speech `[N]` at 16 kHz.
            fps: Frame rate of the result; None: the mesh model's.

        Raises:
            ValueError: No frame rate and no mesh model.
        """
        return num_frames(len(samples), fps or self._mesh_model().fps)

    def __call__(
        self,
        samples: np.ndarray | Recording,
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
        """Motion of a portrait's face for speech, whole. Arguments and errors are those of `stream`."""
        return self.stream(
            samples,
            reference_mesh=reference_mesh,
            reference_pose_matrix=reference_pose_matrix,
            width=width,
            height=height,
            pose=pose,
            identity=identity,
            pose_gain=pose_gain,
            pose_smoothing=pose_smoothing,
            mesh_smoothing=mesh_smoothing,
            fps=fps,
            progress=progress,
        ).whole()

    def stream(
        self,
        samples: np.ndarray | Recording,
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
    ) -> MotionStream:
        """Motion of a portrait's face for speech, in parts: memory does not grow with it where it lies in a file.

        The parts follow the windows in which speech is encoded, 18 seconds and more.

        Args:
            samples: Speech: float mono `[N]` at 16 kHz, at least one sample; or a `Recording` of it.
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
            ValueError: No samples, or an identity or pose that does not fit; with the parts, weights that give no
                finite motion.
        """
        mesh_model = self._mesh_model()
        samples = recorded(samples)
        rate = fps or mesh_model.fps
        count = self.num_frames(samples, rate)

        # Head motion at the result's frame rate: given, none, or predicted from the speech. A wrong shape or identity
        # is refused here, before anything is computed.
        if isinstance(pose, np.ndarray):
            if pose.shape != (count, 6):
                raise ValueError(f"the head motion has shape {pose.shape}, must be ({count}, 6) for this speech")
            poses = iter((pose,))
        elif pose == "still":
            poses = (np.zeros((min(PART, count - first), 6)) for first in range(0, count, PART))
        else:
            pose_model = self._pose_model()
            pose_model.identities(identity, 1)
            moved = self._pose_parts(
                samples, identity=identity, gain=pose_gain, smoothing=pose_smoothing, progress=progress
            )
            total = num_frames(len(samples), pose_model.fps)
            poses = resampled_parts(moved, total, pose_model.fps, rate, count)

        # Mesh at the result's frame rate: the portrait's own, moved by the predicted offsets.
        offsets = self._offset_parts(samples, smoothing=mesh_smoothing, progress=progress)
        total = num_frames(len(samples), mesh_model.fps)
        meshes = resampled_parts(offsets, total, mesh_model.fps, rate, count)
        neutral = np.asarray(reference_mesh, dtype=np.float32)

        def parts() -> Iterator[Motion]:
            for mesh, part in zip(equal_parts(meshes), equal_parts(poses), strict=True):
                moved_mesh = mesh + neutral
                if not (np.isfinite(moved_mesh).all() and np.isfinite(part).all()):
                    raise ValueError("the predicted motion holds values that are not finite: the weights are damaged")
                yield Motion(
                    pose_matrix=placed_pose(part, reference_pose_matrix),
                    neutral=neutral,
                    mesh=moved_mesh,
                    valid=np.ones(len(part), bool),
                    fps=rate,
                    width=width,
                    height=height,
                )

        return MotionStream(parts(), count=count, fps=rate)

    def _mesh_model(self) -> Audio2Mesh:
        if self.audio2mesh is None:
            raise ValueError("a moving mesh needs an Audio2Mesh model")
        return self.audio2mesh

    def _pose_model(self) -> Audio2Pose:
        if self.audio2pose is None:
            raise ValueError("head motion from the speech needs an Audio2Pose model")
        return self.audio2pose

    def predict_offsets(
        self, samples: np.ndarray | Recording, *, smoothing: int | None = None, progress: ProgressCallback | None = None
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
        return np.concatenate(list(self._offset_parts(samples, smoothing=smoothing, progress=progress)))

    def _offset_parts(
        self, samples: np.ndarray | Recording, *, smoothing: int | None, progress: ProgressCallback | None
    ) -> Iterator[np.ndarray]:
        """`predict_offsets` in parts `[n, 468, 3]`."""
        model = self._mesh_model()
        window = model.smoothing if smoothing is None else smoothing
        encoded = _encoded(model, model, "mesh from speech", recorded(samples), progress)
        parts = (part.float().cpu().numpy() for part in encoded)
        return parts if window == 1 else averaged_parts(parts, window, narrow_average)

    def predict_pose(
        self,
        samples: np.ndarray | Recording,
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
        parts = self._pose_parts(samples, identity=identity, gain=gain, smoothing=smoothing, progress=progress)
        return np.concatenate(list(parts))

    def _pose_parts(
        self,
        samples: np.ndarray | Recording,
        *,
        identity: int,
        gain: float | None,
        smoothing: int | None,
        progress: ProgressCallback | None,
    ) -> Iterator[np.ndarray]:
        """`predict_pose` in parts `[n, 6]`."""
        model = self._pose_model()
        samples = recorded(samples)
        # Poses are decoded one after another, each from those before it. With `restart` (AniPortrait's way) every chunk
        # is encoded and decoded for itself; otherwise speech is encoded in windows, and the decoder keeps its state.
        if model.context is None and model.chunking == "restart":
            raw = _restarted(model, samples, identity)
        else:
            memory = _encoded(model, model.encode, "pose from speech", samples, progress)
            raw = _decoded(model, memory, identity, num_frames(len(samples), model.fps), progress)

        # The gain applies to the angles; the translation stays as it is.
        factor = model.angle_gain if gain is None else gain
        window = model.smoothing if smoothing is None else smoothing
        return averaged_parts((_scaled(part, factor) for part in raw), window)


def recorded(samples: np.ndarray | Recording) -> Recording:
    """Speech as a recording; raises `ValueError` as `Recording` does."""
    return samples if isinstance(samples, Recording) else Recording(samples)


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


def _scaled(poses: torch.Tensor, gain: float) -> np.ndarray:
    """Poses `[n, 6]` as float64, with a factor of the angles."""
    result = poses.double().cpu().numpy()
    result[:, :3] *= gain
    return result


@torch.inference_mode()
def _decoded(
    model: Audio2Pose, memory: Iterator[torch.Tensor], identity: int, total: int, progress: ProgressCallback | None
) -> Iterator[torch.Tensor]:
    """Poses `[n, 6]` from parts of encoded speech `[n, D]`, decoded in blocks, each with the state of the one before.

    The blocks always begin at the same frames, wherever the parts do: so they do not change the result.
    """
    first, state = 0, None
    for part in equal_parts(memory, _BLOCK, torch.cat):
        if progress is not None:
            progress("head motion", first, total)
        first += len(part)
        with _one_thread():
            poses, state = decode(model, part[None], identity, state=state, final=first >= total)
        yield poses[0]


@torch.inference_mode()
def _restarted(model: Audio2Pose, samples: Recording, identity: int) -> Iterator[torch.Tensor]:
    """Poses `[n, 6]` of chunks that know nothing of each other."""
    cut, total = _normalised(samples, model)
    yield from restarted_parts(model, cut(0, total), identity)


@torch.inference_mode()
def _encoded(
    model: Audio2Mesh | Audio2Pose, encode: Encode, stage: str, samples: Recording, progress: ProgressCallback | None
) -> Iterator[torch.Tensor]:
    """Encoded speech `[n, …]`, window by window, so that memory does not grow with its length."""
    cut, total = _normalised(samples, model)
    with_progress = _with_progress(encode, stage, num_frames(len(samples), model.fps), progress)
    yield from encode_parts(with_progress, cut, total, model.fps)


def _normalised(recording: Recording, model: Audio2Mesh | Audio2Pose) -> tuple[Callable[[int, int], torch.Tensor], int]:
    """Speech `[N]`, normalised by mean and variance of the whole recording, and padded to whole frames.

    It is padded because the encoders' features are stretched over the frames: with a partly filled last frame every
    other frame would fall between two features, which never happens in training on whole frames. At rates whose frames
    are no whole number of samples (30 fps) it happens in training too, and the speech stays as it is.

    Returns:
        Function from a first sample and an end to the samples between, on the model's device; and the number of
        samples after padding.
    """
    per_frame = SAMPLE_RATE / frame_rate(model.fps)
    total = len(recording)
    if per_frame.denominator == 1:
        total = num_frames(len(recording), model.fps) * int(per_frame)

    def cut(first: int, end: int) -> torch.Tensor:
        part = recording.normalised(first, end)
        return functional.pad(part, (0, end - first - len(part))).to(model.device)

    return cut, total


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
