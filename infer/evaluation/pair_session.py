"""The takes of an evaluation of pairs: subject by subject and clip by clip, measured, kept, and found again.

Subjects that share a renderer come one after the other for each clip, so that weights are loaded once and a clip is
read once for each renderer. A take that fails costs its own numbers.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from annotate.landmarks import LandmarkEngine
from infer.evaluation.clip_scores import Scores, embedded, score
from infer.evaluation.evaluate_request import EvaluateRequest
from infer.evaluation.held_out_clip import DrivingFiles, HeldOutClip, read_held_out, write_driving
from infer.evaluation.pair_choice import PairChoice, RenderSettings
from infer.evaluation.pair_table import ClipFacts, SubjectScores
from infer.evaluation.score_folder import ScoreFolder, strip_of
from infer.evaluation.subjects import COPIED, MEAN, SHUFFLED, STILL, RenderedSubject, Studio, Subject, subjects_of
from infer.metrics.scripted_model import ScriptedModel
from shards.reader import Sample
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.provenance import hash_bytes, library_versions, provenance_key
from talkinghead.rng import generator
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.errors import error_text, is_machine_error, one_line
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the code that measures; raise it when the same takes get other scores."""
LIBRARIES = (
    *("talkinghead", "torch", "transformers", "diffusers", "numpy", "opencv-contrib-python", "av"),
    *("ai-edge-litert", "scikit-image"),  # the landmark engine, ssim
)
"""Libraries whose versions can change a score."""


@dataclass(kw_only=True)
class PairSession:
    """One run over subjects and clips."""

    request: EvaluateRequest
    samples: Sequence[Sample]
    index: str
    """Name of the annotation's index, which holds a hash of its content."""
    settings: RenderSettings
    model: FaceModel
    engine: LandmarkEngine
    networks: Mapping[str, ScriptedModel]
    scratch: Path
    """Folder for what drives; emptied clip by clip."""
    folder: ScoreFolder
    progress: Progress
    _measured_frames: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = choose_device(self.request.device)
        self.face = canonical_face(self.model.geometry_metadata)
        self._by_key = {sample.key: sample for sample in self.samples}
        self.partners = {seed: shuffled_partners(list(self._by_key), seed) for seed in self.request.seeds}

    def subjects(self, choices: list[PairChoice], offset: np.ndarray | None) -> list[Subject]:
        """All subjects of these pairs; `offset` is the mean expression of the training clips."""
        studio = Studio(
            model=self.model, settings=self.settings, device=self.device, progress=_Unseen(), files=self._files
        )
        return subjects_of(
            choices,
            studio,
            mean_offset=offset,
            shuffles=len(self.samples) > 1,
            engine=self.engine,
            face=self.face,
            scratch=self.scratch,
        )

    def measure(self, subjects: list[Subject], offset: np.ndarray | None) -> list[SubjectScores]:
        """Scores of all subjects on all clips, made or found."""
        clips: dict[str, dict[str, dict[int, Scores]]] = {subject.name: {} for subject in subjects}
        failures: dict[str, dict[str, str]] = {subject.name: {} for subject in subjects}
        about = {subject.name: subject.of.about() if subject.of is not None else None for subject in subjects}
        groups = list(dict.fromkeys(subject.group for subject in subjects))
        done, total = 0, len(subjects) * len(self.samples)
        self.progress("evaluate", 0, total)
        for group in groups:
            own = [subject for subject in subjects if subject.group == group]
            for sample in self.samples:
                keys = {
                    subject.name: self._made_of(subject, sample.key, about[subject.name], offset) for subject in own
                }
                lazily = _Lazily(self, sample)
                for subject in own:
                    found = self._attempt(subject, lazily, keys[subject.name])
                    if isinstance(found, str):
                        failures[subject.name][sample.key] = found
                    else:
                        clips[subject.name][sample.key] = found
                    done += 1
                    self.progress("evaluate", done, total)
                shutil.rmtree(self.scratch / sample.key, ignore_errors=True)
        return [
            SubjectScores(
                name=subject.name,
                role=subject.role,
                clips=clips[subject.name],
                failures=failures[subject.name],
                against=_against(subject, subjects),
                about=about[subject.name] if subject.role == "pair" else None,
            )
            for subject in subjects
        ]

    def facts(self) -> list[ClipFacts]:
        """All clips with their groups and measured frames."""
        return [
            ClipFacts(key=sample.key, group=sample.speaker, measured=self._measured_frames.get(sample.key, 0))
            for sample in self.samples
        ]

    def read(self, sample: Sample) -> HeldOutClip:
        """Read a clip."""
        return read_held_out(sample, self.settings.size, self.face, frames=self.request.frames)

    def _attempt(self, subject: Subject, clip: _Lazily, made_of: str) -> dict[int, Scores] | str:
        """Scores of a subject's takes of a clip by seed, or in a line why there are none.

        Raises:
            OSError: A failure of the machine, which would cost all other takes, too.
        """
        try:
            # The number of measured frames is a weight of the clip: it stands with the scores.
            kept = self.folder.find(subject.name, clip.sample.key, made_of)
            if kept is not None:
                self._measured_frames[clip.sample.key] = kept.frames
                return dict(kept.seeds)
            found = clip.get()
            seeds = self.request.seeds if subject.seeded else self.request.seeds[:1]
            scores: dict[int, Scores] = {}
            strip = b""
            for seed in seeds:
                take = subject.take(found, seed)
                scores[seed] = score(take, found, self.engine, self.networks, clip.reference())
                strip = strip or strip_of(take.video)
            measured = int(found.driven.valid.sum())
            self._measured_frames[found.key] = measured
            self.folder.keep(subject.name, found.key, made_of, scores, frames=measured, strip=strip)
            return scores
        except MemoryError:
            raise
        except (ValueError, OSError) as error:
            if is_machine_error(error):
                raise
            log.warning("%s, %s failed: %s", subject.name, clip.sample.key, error_text(error))
            return one_line(" ".join(error_text(error).split()))
        except Exception as error:
            # A defect of the code, or of another package's driver: it costs the take, and the log tells where.
            log.exception("%s, %s failed by a defect", subject.name, clip.sample.key)
            return f"{type(error).__name__}: {one_line(' '.join(str(error).split()))}"

    def _made_of(self, subject: Subject, key: str, about: Mapping[str, Any] | None, offset: np.ndarray | None) -> str:
        """Hash of everything that decides a subject's scores of a clip."""
        request, kind = self.request, getattr(subject, "kind", None)
        parameters: dict[str, Any] = {
            "subject": subject.name,
            "of": about,
            "settings": asdict(self.settings) | {"device": self.device},
            "frames": request.frames,
            "seeds": list(request.seeds if subject.seeded else request.seeds[:1]),
        }
        if kind == SHUFFLED:
            parameters["partners"] = {str(seed): partners[key] for seed, partners in self.partners.items()}
        if kind == MEAN and offset is not None:
            parameters["offset"] = hash_bytes(offset.tobytes())
        networks = {purpose: network.provenance() for purpose, network in self.networks.items()}
        return provenance_key(
            "evaluate-pairs",
            VERSION,
            parameters=parameters,
            inputs={"clip": key, "index": self.index},
            models={"face": self.model.sha256, **networks},
            libraries=library_versions(*LIBRARIES),
        )

    def _files(self, clip: HeldOutClip, choice: PairChoice, seed: int | None) -> DrivingFiles:
        """What drives a clip: its own sound, or where a seed is given the one that is shuffled to it."""
        key = clip.key if seed is None else self.partners[seed][clip.key]
        folder = self.scratch / clip.key / f"{key}{'-seen' if choice.needs_images else ''}"
        return write_driving(
            self._by_key[key],
            folder,
            self.settings.size,
            frames=self.request.frames,
            count=clip.num_frames,
            images=choice.needs_images,
        )


class _Lazily:
    """A clip that is read when a take needs it: an evaluation that goes on passes over clips that are done."""

    def __init__(self, session: PairSession, sample: Sample) -> None:
        self.sample = sample
        self._session = session
        self._clip: HeldOutClip | None = None
        self._reference: np.ndarray | None = None

    def get(self) -> HeldOutClip:
        """The clip; raises `ValueError` where it cannot be read."""
        if self._clip is None:
            self._clip = self._session.read(self.sample)
            self._reference = embedded(self._clip, self._session.engine, self._session.networks)
        return self._clip

    def reference(self) -> np.ndarray | None:
        """Embedding of the portrait's face."""
        return self._reference


class _Unseen(Progress):
    """Progress of a take's own stages, which is not shown: the evaluation tells of whole takes."""

    def __call__(self, stage: str, done: int, total: int, *, frames: int = 0, share: float | None = None) -> None:
        """Do nothing."""


def shuffled_partners(keys: Sequence[str], seed: int) -> dict[str, str]:
    """Clip → another clip that drives it in its place: all in one circle, in an order keyed by the seed.

    So each clip drives exactly one other, and none drives itself; with a single clip there is nobody else.
    """
    if len(keys) < 2:
        return {}
    order = generator(seed, "shuffled sound", *keys).permutation(len(keys))
    return {str(keys[one]): str(keys[other]) for one, other in zip(order, np.roll(order, -1), strict=True)}


def _against(subject: Subject, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Names of what a pair is compared with: its baselines, and the pairs before it."""
    if subject.role != "pair" or subject.of is None:
        return ()
    found = []
    for other in subjects:
        if not isinstance(other, RenderedSubject) or other.of is None:
            continue
        same = other.of.label == subject.of.label
        if other.kind == SHUFFLED and same:
            found.append(other.name)
        if other.kind in (STILL, MEAN) and other.of.renderer_label == subject.of.renderer_label:
            found.append(other.name)
    earlier = [other.name for other in subjects[: subjects.index(subject)] if other.role == "pair"]
    return (*found, COPIED, *earlier)
