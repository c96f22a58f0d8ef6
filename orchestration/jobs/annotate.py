"""Annotate as units: one per ingested sample and annotation version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from annotate.engines import check_engine
from annotate.settings import AnnotateSettings
from orchestration import results
from orchestration.job_names import annotate_job
from orchestration.overrides import settings_with
from orchestration.plans import plan_names, read_plan, write_plan
from orchestration.units.executor import Tally
from orchestration.units.runner import Runner
from orchestration.units.unit import Output, Unit
from talkinghead.config import from_json
from talkinghead.face.model import FaceModel
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import ClipInfo, Member, check_version

if TYPE_CHECKING:
    from talkinghead.face.model import FaceModel
from orchestration.job_names import ENCODE_PREFIX, INGEST_PLAN_PREFIX, encode_job, pack_annotation_job

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
            job=annotate_job(version),
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
    from orchestration.jobs.worker_networks import pin_threads, planned_detector, planned_model
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


def run_annotate(runner: Runner, version: str, overrides: Sequence[str], model: FaceModel) -> Tally:
    """Annotate every ingested sample as `version`.

    Args:
        runner: DATA.
        version: Annotation version.
        overrides: Settings as NAME=VALUE; the others stay as the version was planned before.
        model: The face model.

    Raises:
        ValueError: No such setting, an engine that cannot run the model, or a version that is packed with other ones.
        RunError: The machine is at fault.
    """
    storage, name = runner.storage, annotate_job(check_version(version))
    if encode_job(version) in plan_names(storage, ENCODE_PREFIX):
        raise ValueError(f"{version} holds latents: choose another name for an annotation version")
    if not plan_names(storage, INGEST_PLAN_PREFIX):
        raise ValueError(f"nothing is ingested in {storage.uri}: name the videos with SOURCE, or another DATA")
    before: dict[str, Any] = {"units": {}, "settings": {}}
    if name in plan_names(storage, name):
        before = read_plan(storage, name)
    settings = settings_with(AnnotateSettings, before["settings"], overrides)
    check_engine(settings.engine, model)
    packed = packed_annotations(storage, version)
    about = {"settings": asdict(settings), "model": model.name, "model_sha256": model.sha256}
    if packed:
        _check_same(version, before, about)
    ingested = results.ingested_samples(results.ingest_results(storage))
    samples = media_samples(storage, ingested)
    units = plan_annotate(samples, version, settings, model, runner.retry.time_limit_s)
    units = _keep_packed(before, units, packed)
    write_plan(storage, name, units, **about, order=_order(storage, name))
    return runner.run(name, units)


def media_samples(storage: Storage, ingested: Mapping[str, results.IngestedSample]) -> list[MediaSample]:
    """Where each ingested sample's media are to be read: its shard when it is packed, else its unit's tar."""
    packed = results.packed_samples(storage)
    samples = []
    for key, item in ingested.items():
        file, place = packed.get(key, (item.record.file, item.sample))
        assert file and item.record.file_sha256
        samples.append(
            MediaSample(
                key=key,
                clip_key=item.record.key,
                num_frames=item.sample.num_frames,
                content_sha256=item.record.file_sha256,
                file=file,
                members=tuple(place.members),
            )
        )
    return samples


def packed_annotations(storage: Storage, version: str) -> set[str]:
    """Keys of the samples whose annotation is in a shard of the version (rows of NaN for failed ones are not)."""
    records = results.pack_records(storage, pack_annotation_job(version)).values()
    return {s.key for record in records for s in record.samples if s.key not in record.details.get("blank", ())}


def _check_same(version: str, before: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Packed annotations are immutable: other settings or another model need another version name."""
    differing = [name for name in ("settings", "model_sha256") if before[name] != about[name]]
    if differing:
        what = "another face model" if "model_sha256" in differing else "other settings"
        made = f"{before['model']} ({before['model_sha256'][:12]}…), {before['settings']}"
        raise ValueError(
            f"annotation {version} is packed and was made with {what}: {made}. Run make reannotate ANN=<new version>, "
            "or go on with what it was made with (TALKINGHEAD_MODELS names the model's folder)"
        )


def _keep_packed(before: Mapping[str, Any], units: Iterable[Unit], packed: set[str]) -> list[Unit]:
    """Samples whose annotation is packed stay as they are, also under newer libraries."""
    old = before["units"]
    return [replace(unit, pkey=old.get(unit.key, unit.pkey)) if unit.key in packed else unit for unit in units]


def _order(storage: Storage, name: str) -> int:
    """How many annotation versions were planned before this one."""
    names = plan_names(storage, annotate_job(""))
    return read_plan(storage, name)["order"] if name in names else len(names)
