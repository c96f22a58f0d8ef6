"""Annotate as units: one per ingested sample and annotation version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from annotate.settings import AnnotateSettings
from orchestration.unit import Output, Unit
from talkinghead.config import from_json
from talkinghead.face.model import FaceModel
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import ClipInfo, Member
from talkinghead.storage import Storage

VERSION = 1
LIBRARIES = ("av", "opencv-contrib-python", "numpy", "ai-edge-litert", "mediapipe")


@dataclass(frozen=True, kw_only=True)
class MediaSample:
    """Where an ingested sample's media lie: in its unit's tar, or in a media shard."""

    key: str
    clip_key: str
    num_frames: int
    content_sha256: str
    """Of the ingest unit's tar: with the key it names the content, wherever it lies."""
    file: str
    members: tuple[Member, ...]


def job_name(version: str) -> str:
    """`annotate-<version>`: each annotation version has a ledger of its own."""
    return f"annotate-{version}"


def annotate_key(sample: MediaSample, settings: AnnotateSettings, model: FaceModel) -> str:
    """Provenance key of one sample's annotation."""
    return provenance_key(
        "annotate",
        VERSION,
        parameters=settings,
        inputs={"key": sample.key, "unit": sample.content_sha256},
        models={"face": model.sha256},
        libraries=library_versions(*LIBRARIES),
    )


def plan_annotate(
    samples: Iterable[MediaSample],
    version: str,
    settings: AnnotateSettings,
    model: FaceModel,
    time_limit_s: float | None,
) -> list[Unit]:
    """One unit per sample, in key order."""
    return [
        Unit(
            job=job_name(version),
            key=sample.key,
            pkey=annotate_key(sample, settings, model),
            function="orchestration.jobs.annotate:run",
            payload={
                "file": sample.file,
                "members": [asdict(member) for member in sample.members],
                "num_frames": sample.num_frames,
                "settings": asdict(settings),
                "model_sha256": model.sha256,
            },
            source=sample.key,
            time_limit_s=time_limit_s or 120.0 + 0.5 * sample.num_frames,
        )
        for sample in sorted(samples, key=lambda sample: sample.key)
    ]


def run(storage: Storage, unit: Unit) -> Output:
    """Annotate one sample."""
    from annotate.clip import annotate_clip, encode_annotation
    from annotate.engines import make_engine
    from annotate.scores import sample_scores
    from orchestration.jobs.face import pin_threads, planned_detector, planned_model
    from talkinghead.geometry.canonical import canonical_face
    from talkinghead.media.clip import decode_clip

    pin_threads()
    settings = from_json(AnnotateSettings, unit.payload["settings"])
    model = planned_model(unit.payload["model_sha256"])
    members = {member["suffix"]: member for member in unit.payload["members"]}
    media = {
        suffix: storage.read_range(unit.payload["file"], members[suffix]["offset"], members[suffix]["size"])
        for suffix in ("json", "mp4")
    }
    info = ClipInfo.from_json(media["json"])
    if info.key != unit.key:
        raise ValueError(f"{storage.describe(unit.payload['file'])} holds {info.key} where {unit.key} should be")
    arrays = annotate_clip(
        decode_clip(media["mp4"]),
        engine=make_engine(settings.engine, model),
        detector=planned_detector(model.detector_sha256),
        face=canonical_face(model.geometry_metadata),
        settings=settings,
    )
    if len(arrays["valid"]) != info.num_frames:
        raise ValueError(f"{unit.key}.mp4 has {len(arrays['valid'])} frames, its json says {info.num_frames}")
    scores = sample_scores(arrays, info)
    about = {
        "annotate_key": unit.pkey,
        "engine": settings.engine,
        "model": model.name,
        "model_sha256": model.sha256,
        "settings": unit.payload["settings"],
        "libraries": library_versions(*LIBRARIES),
    }
    contents = encode_annotation(arrays, about, scores)
    return Output(contents=[(unit.key, info.num_frames, contents)], scores={unit.key: scores}, details=about)
