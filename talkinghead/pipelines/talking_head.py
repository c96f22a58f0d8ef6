"""Pipeline around the Lmk2Video networks: a portrait and a moving face in, video frames out."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.image.networks import Vae, latent_scale
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.noise_schedule import Distillation
from talkinghead.models.weights import quiet_libraries
from talkinghead.motion.motion import Motion
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from talkinghead.pipelines.lmk2video.animation import Animation, check_request
from talkinghead.pipelines.lmk2video.clip_request import CALLBACK_TENSORS, ClipRequest, VideoRequest, takes
from talkinghead.pipelines.lmk2video.frames import TalkingHeadOutput, as_bytes, collect
from talkinghead.pipelines.memory import MemoryPreset, check_offload, memory_preset, spread, without_weights
from talkinghead.pipelines.pipeline_folder import PARTS, read_index, read_parts

_SPEECH = ("audio2mesh", "audio2pose")
"""Names of the networks for speech, which are always in single precision."""


class TalkingHeadPipeline(DiffusionPipeline):
    """Pipeline that animates a portrait by landmarks, for videos of any length in constant memory.

    A `diffusers` pipeline: `save_pretrained` and `from_pretrained`, `to`, `components`, `progress_bar`, a scheduler
    that can be swapped, callbacks, `interrupt`, `enable_vae_slicing`, `enable_model_cpu_offload`. Load it with this
    class: `DiffusionPipeline.from_pretrained` does not find networks outside of `diffusers`.

    Args:
        vae: VAE of the images, an `AutoencoderKL`, or the `CosineVae` of tiny models.
        image_encoder: CLIP's image encoder, with projection.
        reference_net: Network that encodes the portrait.
        denoiser: Denoiser with motion modules (stage 2), or without (stage 1: frames do not interact).
        pose_guider: Network that encodes guidance images.
        scheduler: Sampler of `diffusers` with the noise schedule of the networks, see `noise_schedule`.
        audio2mesh: Model from speech to a moving mesh; None: `motion` cannot be used.
        audio2pose: Model from speech to head motion; None: `motion` must be given the head motion.
        compat: Whether the weights are AniPortrait's published ones: windows form a closed loop with uniform weights,
            and projection is as in its program.
        fps: Frame rate of the motion modules' training.
        width: Width in pixels of the networks' training images, the default of calls.
        height: Height in pixels of the networks' training images, the default of calls.
        context_frames: Number of frames of the motion modules' training windows, the default of calls.
        distilled: How the denoiser was distilled to few steps; None: not at all. Samplers for distilled weights
            (`LCMScheduler`, `TCDScheduler`) are refused for others.

    Raises:
        ValueError: There is no such distillation.
    """

    # Order in which `enable_model_cpu_offload` moves networks to the device, each in place of the one before. It is
    # that of the calls until sampling begins. PoseGuider and denoiser then alternate for every block of frames, and the
    # VAE decodes in between: the PoseGuider stands outside of the order, and all three stay on the device to the end.
    # The networks for speech take no part, and may be missing.

    model_cpu_offload_seq = "image_encoder->vae->reference_net->denoiser"
    _exclude_from_cpu_offload = [*_SPEECH]  # noqa: RUF012  as in the base class
    _optional_components = [*_SPEECH]  # noqa: RUF012
    _callback_tensor_inputs = CALLBACK_TENSORS

    vae: Vae
    image_encoder: Any
    reference_net: ReferenceNet
    denoiser: Denoiser
    pose_guider: PoseGuider
    scheduler: Any
    audio2mesh: Audio2Mesh | None
    audio2pose: Audio2Pose | None

    def __init__(
        self,
        vae: Vae,
        image_encoder: Any,
        reference_net: ReferenceNet,
        denoiser: Denoiser,
        pose_guider: PoseGuider,
        scheduler: Any,
        audio2mesh: Audio2Mesh | None = None,
        audio2pose: Audio2Pose | None = None,
        compat: bool = False,
        fps: float = 25.0,
        width: int | None = None,
        height: int | None = None,
        context_frames: int = 16,
        distilled: Distillation | None = None,
    ) -> None:
        super().__init__()
        if distilled is not None and distilled not in get_args(Distillation):
            raise ValueError(f"distilled must be None or one of {', '.join(get_args(Distillation))}, not {distilled!r}")
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            reference_net=reference_net,
            denoiser=denoiser,
            pose_guider=pose_guider,
            scheduler=scheduler,
            audio2mesh=audio2mesh,
            audio2pose=audio2pose,
        )
        self.register_to_config(
            compat=compat, fps=fps, width=width, height=height, context_frames=context_frames, distilled=distilled
        )
        # State of the pipeline that is not saved.
        self.vae_scale_factor = latent_scale(vae)
        self.memory: MemoryPreset | None = None
        self._interrupt = False
        self.current_frames = range(0)
        """Frames whose latents a callback gets; valid during the callback."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **given: Any,
    ) -> Self:
        """Pipeline from a folder of `save_pretrained`, complete, in evaluation mode.

        Args:
            folder: Local folder.
            dtype: Precision of the networks; None: single precision, also where half precision was saved. Speech
                networks, latents and the sampler's arithmetic are always in single precision.
            torch_dtype: Former name of `dtype`, which `diffusers` warns of too.
            given: Parts and settings to use instead of the folder's, by their names in `__init__`.

        Raises:
            ValueError: The folder is missing or damaged, or weights do not fit the network that is described; or a
                precision that is none, or two of them.
        """
        dtype = _precision(dtype, torch_dtype)
        # The arguments of `__init__` are parts, which have subfolders, and settings, which are in the index.
        names = sorted(inspect.signature(cls).parameters)
        parts, settings = ([name for name in names if (name in PARTS) == wanted] for wanted in (True, False))
        if unknown := given.keys() - {*parts, *settings}:
            raise ValueError(f"a pipeline has no {', '.join(sorted(unknown))}; it has {', '.join(parts + settings)}")

        # Read what is not given. A setting that an older folder lacks has its default.
        index = read_index(Path(folder), cls.__name__)
        read = read_parts(Path(folder), index, [name for name in parts if name not in given], _SPEECH)
        read |= {name: index[name] for name in settings if name in index}
        pipeline = cls(**(read | given))
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline if dtype is None else pipeline.to(dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save every part in a subfolder, as `diffusers` pipelines do; without progress bars or paths."""
        origin = self.config.get("_name_or_path")
        self.register_to_config(_name_or_path=None)
        try:
            with quiet_libraries():
                super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.register_to_config(_name_or_path=origin)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast the networks as `diffusers` pipelines do; networks for speech are moved, but not cast."""
        # The speech networks are taken out meanwhile, because the base class casts every part that it finds.
        speech = {name: self.__dict__[name] for name in _SPEECH}
        self.__dict__.update(dict.fromkeys(_SPEECH))
        try:
            with quiet_libraries():  # which warn of half precision on a CPU: slow, but it works
                super().to(*args, **kwargs)
        finally:
            self.__dict__.update(speech)
        for network in speech.values():
            if network is not None:
                network.to(self.denoiser.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks; those for speech, which may have another, do not count."""
        return self.denoiser.dtype

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image at a time: less memory, and the same images to rounding.

        `decode_chunk_size=1` in a call does the same for the frames.

        Raises:
            NotImplementedError: The VAE cannot, as `CosineVae`, whose memory is small.
        """
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode images in tiles that overlap: less memory for large images, which come out a bit otherwise.

        A tile knows nothing of the others, so shades may differ from one to the next. The portrait is encoded in tiles
        too.

        Raises:
            NotImplementedError: The VAE cannot, as `CosineVae`, whose memory is small.
        """
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.vae.disable_tiling()

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep networks in the computer's memory, and on the device only while they are needed.

        The frames are the same. A call moves every network once. While frames are sampled, denoiser, PoseGuider and VAE
        are on the device, and after the last one none is, but the networks for speech and those without weights. A
        stream that is left early leaves them there until the next call.

        Args:
            gpu_id: Number of the GPU; None: that of `device`, or the first.
            device: Device of the computation; None: the accelerator of this machine.

        Raises:
            ValueError: The accelerate library is missing, there is no accelerator, or two different GPUs are named.
        """
        check_offload(device)
        bare = without_weights(self.components)
        order = type(self).model_cpu_offload_seq.split("->")
        self.model_cpu_offload_seq = "->".join(name for name in order if name not in bare)
        self._exclude_from_cpu_offload = [*_SPEECH, *bare]
        super().enable_model_cpu_offload(gpu_id=gpu_id, device=device)  # pyright: ignore[reportArgumentType]

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Refused: this pipeline cannot compute layer by layer.

        Raises:
            ValueError: Always; says what to take instead.
        """
        del gpu_id, device
        raise ValueError(
            "enable_sequential_cpu_offload does not fit: it moves every layer for every window in every step, and only"
            " those of `forward`, while this pipeline computes parts of the networks once for many windows. Take"
            " enable_model_cpu_offload() or apply_preset(8)"
        )

    def apply_preset(
        self, gigabytes: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move to a device, with settings for its memory.

        Args:
            gigabytes: Memory preset: 8, 12, 16 or 24, see `memory.PRESETS`.
            device: Device to move to; None: the present one.
            dtype: Precision of the networks; None: the preset's, or single precision on the CPU.

        Raises:
            ValueError: There is no such preset.
        """
        preset = memory_preset(gigabytes)
        place = torch.device(device) if device is not None else self.device
        # Cast first, where the networks are, so that only the smaller weights are moved.
        self.to(dtype or (torch.float32 if place.type == "cpu" else preset.dtype), silence_dtype_warnings=True)
        spread(self.components, preset, place)
        self.memory = preset
        return self

    @property
    def interrupt(self) -> bool:
        """Whether the present video ends without further frames; a callback sets `_interrupt` for that."""
        return self._interrupt

    @property
    def compute_device(self) -> torch.device:
        """Device of the computation, also when `diffusers` keeps weights elsewhere."""
        return self._execution_device

    @takes(VideoRequest)
    def __call__(self, request: VideoRequest) -> TalkingHeadOutput | tuple[Any]:
        """Video of an animated portrait, all frames at once (`stream` needs no memory for them).

        The arguments are the fields of `VideoRequest`: those of `ClipRequest`, `output_type` and `return_dict`.

        Returns:
            The frames; after an interruption, those that were finished.

        Raises:
            ValueError: Arguments or the scheduler do not fit, or memory runs out; says what to do.
        """
        animation, latent = self._start(request), request.output_type == "latent"
        frames = collect(animation.parts(latent=latent), request.output_type, animation.frame_shape(latent=latent))
        return TalkingHeadOutput(frames=frames) if request.return_dict else (frames,)

    @takes(ClipRequest)
    def stream(self, request: ClipRequest) -> Iterator[np.ndarray]:
        """Frames of an animated portrait in order, each as soon as it is final.

        The arguments are the fields of `ClipRequest`; they are checked before the first frame is requested. Memory does
        not grow with the number of frames. After an interruption no more frames come.

        Yields:
            RGB uint8 `[H, W, 3]`.

        Raises:
            ValueError: Arguments or the scheduler do not fit, or memory runs out; says what to do.
        """
        # Returns a generator instead of being one, so that the request is checked in the call.
        parts = self._start(request).parts(latent=False)
        return (frame for part in parts for frame in as_bytes(part))

    @property
    def motion(self) -> AudioToLandmarks:
        """Function from speech to the motion of a face, `motion(samples, …)`, see `AudioToLandmarks.__call__`."""
        return AudioToLandmarks(self.audio2mesh, self.audio2pose)

    def landmarks(self, motion: Motion) -> np.ndarray:
        """Landmarks of a motion, `[F, 468, 2]`, in the projection that these weights were trained on.

        Raises:
            ValueError: The motion has no meshes, or the head moves behind the camera.
        """
        return motion.landmarks(compat=self.config["compat"])

    def check_inputs(self, request: ClipRequest) -> None:
        """Refuse requests that the networks cannot fulfil, before anything is computed.

        Raises:
            ValueError: Something does not fit; says what, and what would.
        """
        check_request(request, self, *self.frame_size(request))

    def frame_size(self, request: ClipRequest) -> tuple[int, int]:
        """Width and height of the frames in pixels: the request's, else the networks', else the portrait's."""
        image = request.reference
        own = image.size if isinstance(image, PIL.Image.Image) else (image.shape[1], image.shape[0])
        return request.width or self.config["width"] or own[0], request.height or self.config["height"] or own[1]

    def _start(self, request: ClipRequest) -> Animation:
        self.check_inputs(request)
        self._interrupt = False
        return Animation(self, request, self.frame_size(request))


def _precision(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """The precision that was asked for by either name; `ValueError` for both, or for what is none."""
    if torch_dtype is not None:
        if dtype is not None:
            raise ValueError("give dtype or torch_dtype, not both: torch_dtype is the former name of dtype")
        warnings.warn("torch_dtype is now called dtype, here and in diffusers", FutureWarning, stacklevel=3)
    found = dtype if torch_dtype is None else torch_dtype
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype must be a floating-point torch.dtype, such as torch.float16, not {found!r}")
    return found
