"""Inputs that are there more than once, over all data sets of DATA: each stays once, the others are rejected.

A duplicate is a unit like others, which rejects its clip without opening it; its provenance key begins with a word of
its own and holds the key of the input that stays. So a duplicate whose original is gone is planned anew.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ingest.catalog import read_catalog
from ingest.duplicates import REASON, Input, find_duplicates, name_of
from orchestration import plans
from orchestration.jobs import recovered
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX, IngestPlan
from orchestration.units.records import RejectedPiece
from orchestration.units.unit import Output, Unit
from talkinghead.files.storage import Storage
from talkinghead.provenance import provenance_key
from talkinghead.schema import CatalogRow, Rejection

log = logging.getLogger(__name__)

VERSION = 1
_PREFIX = f"{REASON}-"  # of provenance keys
_TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class Duplicates:
    """The inputs of DATA that are there already."""

    kept: Mapping[str, CatalogRow]
    """Key of each duplicate → row of the input that stays."""
    others: Mapping[str, IngestPlan]
    """Data set → its plan, for those data sets that are not ingested now."""
    rows: Mapping[str, CatalogRow]
    """Rows of these data sets by key."""
    packed: Collection[str]

    @classmethod
    def find(cls, storage: Storage, dataset: str, inputs: Collection[Input], packed: set[str]) -> Duplicates:
        """Compare the inputs of a data set with each other, and with those of the other data sets of DATA.

        Args:
            storage: DATA, the data set's folder or bucket.
            dataset: Name of the data set that is ingested now.
            inputs: Its inputs.
            packed: Keys of clips that are in a shard.
        """
        others, rows, known = {}, {}, []
        for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
            other = name.removeprefix(INGEST_PLAN_PREFIX)
            plan = plans.find_ingest(storage, other)
            if other == dataset or plan is None:
                continue
            others[other] = plan
            found = [row for row in _rows(storage, other, plan) if row.source is not None]
            rows.update({row.key: row for row in found})
            known += [Input(row=row, content=plan.contents.get(row.key)) for row in found]
        return cls(find_duplicates([*inputs, *known], packed), others, rows, packed)

    def unit(self, row: CatalogRow, content: str | None) -> Unit:
        """Unit that rejects a duplicate."""
        kept = self.kept[row.key]
        inputs = {"row": row, "content": content, "kept": kept.key}
        return Unit(
            job=INGEST_JOB,
            key=row.key,
            pkey=_PREFIX + provenance_key(REASON, VERSION, parameters={}, inputs=inputs),
            function="orchestration.jobs.duplicates:run",
            payload={"row": row.to_json(), "kept": name_of(kept)},
            source=row.source or row.key,
            time_limit_s=_TIME_LIMIT_S,
        )

    def settle_others(self, storage: Storage) -> list[Unit]:
        """Bring the plans of the other data sets in line; returns the units that this adds to them.

        A clip of another data set may have become a duplicate of one that is ingested now. One whose original is gone
        is no duplicate any more: it is taken out of the plan, and so pending until its data set is ingested again.
        """
        added = []
        for name, plan in self.others.items():
            units = dict(plan.units)
            lost = 0
            for key, pkey in plan.units.items():
                if key in self.kept and key in self.rows:
                    unit = self.unit(self.rows[key], plan.contents.get(key))
                    if pkey != unit.pkey:
                        units[key] = unit.pkey
                        added.append(unit)
                elif pkey.startswith(_PREFIX) and key not in self.packed:
                    del units[key]
                    lost += 1
            if lost:
                again = f"ingest {name} again to take them in"
                log.warning("%d clips of %s were duplicates of clips that are gone: %s", lost, name, again)
            if units != plan.units:
                contents = {key: plan.contents.get(key) for key in units}
                plans.write_plan(storage, plans.ingest_plan_name(name), replace(plan, units=units, contents=contents))
        return added


def _rows(storage: Storage, dataset: str, plan: IngestPlan) -> list[CatalogRow]:
    """Rows of another data set; where its catalog is gone or damaged, as far as the records of its clips tell them."""
    try:
        return read_catalog(storage, dataset).rows
    except ValueError as error:  # no error: two catalogs that are lost could never be made again, one after the other
        log.warning("%s; until then the records of its clips say what they are", error)
        return recovered.planned_rows(storage, plan)


def run(storage: Storage, unit: Unit) -> Output:
    """Reject one duplicate."""
    row = CatalogRow.from_json(unit.payload["row"])
    rejection = Rejection(reason=REASON, detail=f"the same bytes as {unit.payload['kept']}")
    return Output(rejected=[RejectedPiece(key=row.key, rejection=rejection)], details=about(row))


def about(row: CatalogRow) -> dict[str, Any]:
    """Facts about a clip for the index and the report, which therefore read no media."""
    names = ("dataset", "source_id", "source", "person", "split_group", "licence", "terms_url", "start_s", "end_s")
    return {name: getattr(row, name) for name in names}
