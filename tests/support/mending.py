"""Commands of the data side in this process, without Ray: for tests that damage DATA and run the jobs again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs.annotate import run_annotate
from orchestration.jobs.finish import finish
from orchestration.jobs.ingest import run_ingest
from orchestration.jobs.ingest_inputs import Source
from orchestration.jobs.pack import run_pack
from orchestration.units.executor import RetrySettings, Tally, UnitRunner
from orchestration.units.ledger import Ledger, writer_lock
from orchestration.units.lost import check_same, lost_outputs
from orchestration.units.records import QuarantineRecord
from orchestration.units.unit import JobStoppedError, Unit, failed_attempt, run_unit
from shards.manifest import DatasetManifest
from talkinghead import dataroot
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage


class RunnerHere(UnitRunner):
    """Runs units here, one after the other, as the executor does; a failure is quarantined at once."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run what is pending or lost."""
        del gpu_share
        started = time.perf_counter()
        ledger = Ledger(self.storage, job)
        lost = lost_outputs(ledger, units)
        pending = [unit for unit in units if unit.key in lost or not ledger.is_done(unit)]
        tally = Tally(planned=len(units), done_before=len(units) - len(pending))
        for unit in pending:
            try:
                tally.frames += run_unit(self.storage, unit, attempts=1).frames
                tally.committed += 1
            except JobStoppedError:
                raise
            except Exception as error:  # noqa: BLE001  as the executor does
                attempts = [failed_attempt(error, alone=False, seconds=0.0)]
                record = QuarantineRecord(job=job, key=unit.key, pkey=unit.pkey, source=unit.source, attempts=attempts)
                self.storage.create(dataroot.quarantine(job, unit.key, unit.pkey), record.to_json())
                tally.quarantined += 1
        check_same(self.storage, lost)
        tally.wall_seconds = time.perf_counter() - started
        self.done[job] = (tally.committed, tally.quarantined)
        return tally

    @property
    def done(self) -> dict[str, tuple[int, int]]:
        """Job → units committed and quarantined by the last run."""
        return _DONE.setdefault(id(self), {})


_DONE: dict[int, dict[str, tuple[int, int]]] = {}  # of frozen objects


def make_shards(
    data: Storage | Path, source: Path | None = None, version: str = "v1", **options: object
) -> tuple[DatasetManifest, dict[str, tuple[int, int]]]:
    """Do what the command `shards` does.

    Args:
        data: The data set.
        source: SOURCE; None: as without it.
        version: Annotation version.
        options: Further ones of `Source`.

    Returns:
        `DATASET.json`, and job → units committed and quarantined.
    """
    storage = data if isinstance(data, Storage) else Storage(data)
    runner = RunnerHere(storage=storage, cluster=Cluster(ClusterSettings()), retry=RetrySettings())
    model = resolve_face_model()
    with writer_lock(storage):
        if source is not None:
            run_ingest(runner, Source(source=str(source), **options), (), model)  # type: ignore[arg-type]
        run_annotate(runner, version, (), model)
        run_pack(runner, version, ("min_shards=2",))
        return finish(storage, version), runner.done
