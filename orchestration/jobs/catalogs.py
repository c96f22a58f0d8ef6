"""Catalogs that DATA should have: which data sets they are of, and a word about those that are gone or damaged."""

from __future__ import annotations

import logging

from ingest.catalog import read_catalog
from orchestration import plans
from orchestration.plans import INGEST_PLAN_PREFIX
from shards.manifest import DatasetManifest, find_manifest
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS

log = logging.getLogger(__name__)


def cataloged(storage: Storage, manifest: DatasetManifest | None) -> list[str]:
    """Data sets of which DATA has, or should have, a catalog: an ingest writes it before its plan.

    Args:
        storage: DATA, the data set's folder or bucket.
        manifest: `DATASET.json`; None: nothing is finished yet.
    """
    known = {name.removeprefix(INGEST_PLAN_PREFIX) for name in plans.plan_names(storage, INGEST_PLAN_PREFIX)}
    known |= set(manifest.datasets if manifest else ())
    return [name for name in DATASETS if name in known or storage.exists(dataroot.catalog(name))]


def warn_of_lost_catalogs(storage: Storage) -> None:
    """A warning for each catalog that is gone or damaged, with the command that makes it again.

    For commands whose result does not depend on it.
    """
    for name in cataloged(storage, find_manifest(storage)):
        try:
            read_catalog(storage, name)
        except ValueError as error:
            log.warning("%s; this command needs none, the report and removals do", error)
