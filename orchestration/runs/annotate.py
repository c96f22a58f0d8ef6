"""Annotate everything that is ingested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from annotate.engines import check_engine
from annotate.settings import AnnotateSettings
from orchestration import results
from orchestration.executor import Tally
from orchestration.jobs import annotate, ingest, latents, pack
from orchestration.jobs.annotate import MediaSample
from orchestration.jobs.plans import plan_names, read_plan, write_plan
from orchestration.overrides import settings_with
from orchestration.runs.runner import Runner
from orchestration.unit import Unit
from talkinghead.schema import check_version
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from talkinghead.face.model import FaceModel


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
    storage, name = runner.storage, annotate.job_name(check_version(version))
    if latents.job_name(version) in plan_names(storage, latents.PREFIX):
        raise ValueError(f"{version} holds latents: choose another name for an annotation version")
    if not plan_names(storage, ingest.PLAN_PREFIX):
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
    units = annotate.plan_annotate(samples, version, settings, model, runner.retry.time_limit_s)
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
    records = results.pack_records(storage, pack.annotation_job(version)).values()
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
    names = plan_names(storage, annotate.job_name(""))
    return read_plan(storage, name)["order"] if name in names else len(names)
