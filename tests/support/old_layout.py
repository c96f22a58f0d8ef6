"""Exports and DATA as an older release (commit 848ea50) wrote them: module names of exports, plans as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from orchestration import plans
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.latents import LATENTS
from talkinghead.provenance import pretty_json

EXPORT_NAMES = {
    "vae": ["talkinghead.models.cosine_codec", "CosineCodec"],
    "reference_net": ["talkinghead.models.reference_net", "ReferenceNet"],
    "denoiser": ["talkinghead.models.denoiser", "Denoiser"],
    "pose_guider": ["talkinghead.models.pose_guider", "PoseGuider"],
    "audio2mesh": ["talkinghead.models.audio2mesh", "Audio2Mesh"],
    "audio2pose": ["talkinghead.models.audio2pose", "Audio2Pose"],
}
"""Part of a pipeline → module and class in its `model_index.json`."""


def age_export(folder: Path) -> None:
    """Give a pipeline's folder the names that it would have had."""
    index_file, vae_file = folder / "model_index.json", folder / "vae" / "config.json"
    index, vae = json.loads(index_file.read_bytes()), json.loads(vae_file.read_bytes())
    index |= {part: names for part, names in EXPORT_NAMES.items() if index[part] != [None, None]}
    index_file.write_text(json.dumps(index))
    vae_file.write_text(json.dumps(vae | {"_class_name": "CosineCodec"}))


def age_data(folder: Path) -> None:
    """Give DATA the plans, records and manifest that it would have had."""
    storage = Storage(folder)
    for name in plans.plan_names(storage, ""):
        plan = plans.find_plan(storage, name)
        assert plan is not None
        storage.write(dataroot.old_plan(name), pretty_json(old_plan(plan)))
        storage.delete(dataroot.plan(name))
    for file in (folder / "records").rglob("*.json"):
        record = json.loads(file.read_bytes())
        for sample in record["samples"]:
            assert not sample.pop("labels"), "there were none"
        file.write_bytes(pretty_json(record))
    manifest = json.loads((folder / dataroot.DATASET_JSON).read_bytes())
    assert not manifest.pop("fits")
    for entry in manifest["annotations"]:
        if entry["kind"] == LATENTS:
            entry["details"] = {**old_latents(entry["details"]), "columns": ["embedding", "latents"]}
    (folder / dataroot.DATASET_JSON).write_bytes(pretty_json(manifest))


def old_plan(plan: plans.Plan) -> dict[str, object]:
    """JSON of a plan."""
    if isinstance(plan, plans.ShardPlan):
        return {"shards": plan.shards, "settings": plan.settings}
    if isinstance(plan, plans.ColumnPlan):
        return {"units": plan.units, **old_latents(asdict(plan.made_of))}
    return asdict(plan)


def old_latents(made_of: dict[str, object]) -> dict[str, object]:
    """Details of a version of latents."""
    assert made_of["column"] == LATENTS
    return {"encoding": 1, **made_of["parameters"], **made_of["provenance"]}  # type: ignore[dict-item]
