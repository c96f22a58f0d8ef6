"""The annotate job: landmarks and more of the face in every ingested sample, as one annotation version.

`run_annotate` plans a unit per ingested sample and version, and runs those that are not done; `run` is what a worker
does with one. What is packed never changes: a packed version goes on only with the settings and the model it was made
with, and its samples keep their provenance keys, also under newer libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from annotate.engines import check_engine
from annotate.settings import AnnotateSettings
from orchestration import outcomes, plans
from orchestration.jobs import recovered
from orchestration.jobs.media import IngestedMedia, MediaSample, ingested_media, read_clip
from orchestration.jobs.removed import strip_removed
from orchestration.overrides import settings_with
from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.frame_reports import counted
from orchestration.units.ledger import Ledger
from orchestration.units.unit import Output, Unit
from shards.manifest import find_manifest
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.face.model import FaceModel
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import check_version

# Both go into the provenance keys: a higher version, or another release of a library, means that units are done anew.
VERSION = 2
LIBRARIES = ("av", "opencv-contrib-python", "numpy", "ai-edge-litert", "mediapipe")

# --- the whole job ----------------------------------------------------------------------------------------------------


def run_annotate(runner: UnitRunner, version: str, overrides: Sequence[str], model: FaceModel) -> Tally:
    """Annotate every ingested sample as `version`.

    Args:
        runner: Runs the units, on its DATA.
        version: Name of the annotation version.
        overrides: `AnnotateSettings` as NAME=VALUE; the others stay as the version was planned before.
        model: Face model.

    Returns:
        Counts of the units done before and now.

    Raises:
        ValueError: A setting does not exist, the engine cannot run the model, or the version is packed with other
            settings or another model.
        JobStoppedError: The machine is at fault.
    """
    storage, name = runner.storage, plans.annotate_job(check_version(version))

    # A name that is free for a face annotation, and something to annotate.
    if column := plans.column_plan_named(storage, version):
        raise ValueError(
            f"{version} holds the column {column.made_of.column}: choose another name for an annotation version"
        )
    there = set(plans.plan_names(storage, plans.INGEST_PLAN_PREFIX))
    manifest = find_manifest(storage)
    if gone := {plans.ingest_plan_name(name) for name in (manifest.datasets if manifest else ())} - there:
        command = plans.again_with(min(gone), storage.uri)
        raise ValueError(f"{storage.describe(dataroot.plan(min(gone)))} is gone: {command} makes it again")
    if not there:
        raise ValueError(f"nothing is ingested in {storage.uri}: name the videos with SOURCE, or another DATA")

    # Settings: what the user names, else what the version was planned with before.
    before = _plan_before(storage, version)
    settings = settings_with(AnnotateSettings, before.settings if before else {}, overrides)
    check_engine(settings.engine, model)
    packed = outcomes.packed_columns(storage, version)
    if packed.keys and before:
        _check_same(version, before, settings, model)

    # The plan: a unit per ingested sample, packed ones as they were made. It is written before anything runs.
    strip_removed(storage)
    known = IngestedMedia(storage)
    samples = ingested_media(storage, known)
    units = plan_annotate(samples, version, settings, model, runner.retry.time_limit_s)
    units = plans.keep_packed(units, before.units if before else {}, packed)
    plan = plans.AnnotatePlan(
        units=plans.pairs(units),
        settings=asdict(settings),
        model=model.name,
        model_sha256=model.sha256,
        order=before.order if before else len(plans.plan_names(storage, plans.ANNOTATE_PREFIX)),
    )
    plans.write_plan(storage, name, plan)

    # Annotate what is not done, whose media must be there.
    done = Ledger(storage, name)
    pending = [unit.key for unit in units if not done.is_done(unit)]
    outcomes.check_media(storage, pending, known.ingested, known.shards)
    return runner.run(name, units)


def _plan_before(storage: Storage, version: str) -> plans.AnnotatePlan | None:
    """Plan of the command before; where it is damaged or gone, what the records of packed samples say of it."""
    name = plans.annotate_job(version)
    plans.set_aside_damaged(storage, name)
    if (plan := plans.find_annotate(storage, version)) is None:
        plan = recovered.annotate_plan(storage, version)
        if plan is not None:
            plans.write_plan(storage, name, plan)
    return plan


def _check_same(version: str, before: plans.AnnotatePlan, settings: AnnotateSettings, model: FaceModel) -> None:
    """Raise `ValueError` unless settings and model are those of the packed version: shards are immutable."""
    if before.model_sha256 != model.sha256 or before.settings != asdict(settings):
        what = "another face model" if before.model_sha256 != model.sha256 else "other settings"
        made = f"{before.model} ({before.model_sha256[:12]}…), {before.settings}"
        raise ValueError(
            f"annotation {version} is packed and was made with {what}: {made}. Run make reannotate ANN=<new version>, "
            "or go on with what it was made with (TALKINGHEAD_MODELS names the model's folder)"
        )


# --- its units --------------------------------------------------------------------------------------------------------


def plan_annotate(
    samples: Iterable[MediaSample],
    version: str,
    settings: AnnotateSettings,
    model: FaceModel,
    time_limit_s: float | None,
) -> list[Unit]:
    """Plan one unit per sample, in key order.

    Args:
        samples: Samples to annotate.
        version: Name of the annotation version.
        settings: Parameters of the job.
        model: Face model.
        time_limit_s: Wall-clock limit of a unit in seconds; None: from the length of its clip.
    """
    # The version's name is no part of the provenance key: it says where a result belongs, not what it depends on.
    libraries = library_versions(*LIBRARIES)
    return [
        Unit(
            job=plans.annotate_job(version),
            key=sample.key,
            pkey=provenance_key(
                "annotate",
                VERSION,
                parameters=settings,
                inputs={"key": sample.key, "unit": sample.content_sha256},
                models={"face": model.sha256},
                libraries=libraries,
            ),
            function="orchestration.jobs.annotate:run",
            payload=sample.payload()
            | {"num_frames": sample.num_frames, "settings": asdict(settings), "model_sha256": model.sha256},
            source=sample.key,
            time_limit_s=time_limit_s or 120.0 + 0.5 * sample.num_frames,
            frames=sample.num_frames,
        )
        for sample in sorted(samples, key=lambda sample: sample.key)
    ]


# --- in a worker ------------------------------------------------------------------------------------------------------


def run(storage: Storage, unit: Unit) -> Output:
    """Annotate one sample."""
    from annotate.clip import annotate_clip, encode_annotation
    from annotate.engines import make_engine
    from annotate.scores import sample_scores
    from annotate.small_images import SmallImages
    from orchestration.jobs.worker import pin_threads, planned_detector, planned_model
    from talkinghead.geometry.canonical import canonical_face

    # The model that the plan was made with, and the media.
    pin_threads()
    settings = from_json(AnnotateSettings, unit.payload["settings"])
    model = planned_model(unit.payload["model_sha256"])
    clip = read_clip(storage, unit, "mp4")
    # Decode and annotate frame by frame, so that the frames of a long clip are never in memory together.
    images = SmallImages()
    arrays = annotate_clip(
        images.watch(counted(clip.frames())),
        engine=make_engine(settings.engine, model),
        detector=planned_detector(model.detector_sha256),
        face=canonical_face(model.geometry_metadata),
        settings=settings,
        damaged=clip.info.damaged_frames,
    )
    # The columns must have a row for each frame; then the scores, by which the filters judge the sample.
    clip.check_length(len(arrays["valid"]))
    scores = sample_scores(arrays, clip.info, images.stacked())
    about = {
        "annotate_key": unit.pkey,
        "engine": settings.engine,
        "model": model.name,
        "model_sha256": model.sha256,
        "settings": unit.payload["settings"],
        "libraries": library_versions(*LIBRARIES),
    }
    contents = encode_annotation(arrays, about, scores)
    return Output(contents=[(unit.key, clip.info.num_frames, contents)], scores={unit.key: scores}, details=about)
