"""Commands of the data side in this process, without Ray: for tests that damage DATA and run the jobs again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs.annotate import run_annotate
from orchestration.jobs.finish import finish
from orchestration.jobs.ingest import run_ingest
from orchestration.jobs.ingest_inputs import Source
from orchestration.jobs.pack import run_pack
from orchestration.units.executor import RetrySettings, Tally
from orchestration.units.ledger import writer_lock
from orchestration.units.unit import Unit
from shards.manifest import DatasetManifest
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from tests.support.latent_data import InProcessUnitRunner


class CountingRunner(InProcessUnitRunner):
    """Tells what it has done in each job."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run what is pending or lost."""
        tally = super().run(job, units, gpu_share=gpu_share)
        self.done[job] = (tally.committed, tally.quarantined)
        return tally

    @property
    def done(self) -> dict[str, tuple[int, int]]:
        """Job → units committed and quarantined by the last run."""
        return _DONE.setdefault(id(self), {})


_DONE: dict[int, dict[str, tuple[int, int]]] = {}  # of frozen objects


def make_shards(
    data: Storage | Path, source: Path | None = None, version: str = "v1", ingest: Sequence[str] = (), **options: object
) -> tuple[DatasetManifest, dict[str, tuple[int, int]]]:
    """Do what the command `shards` does.

    Args:
        data: The data set.
        source: SOURCE; None: as without it.
        version: Annotation version.
        ingest: Settings of ingest as NAME=VALUE.
        options: Further ones of `Source`.

    Returns:
        `DATASET.json`, and job → units committed and quarantined.
    """
    storage = data if isinstance(data, Storage) else Storage(data)
    runner = CountingRunner(storage=storage, cluster=Cluster(ClusterSettings()), retry=RetrySettings())
    model = resolve_face_model()
    with writer_lock(storage):
        if source is not None:
            run_ingest(runner, Source(source=str(source), **options), ingest, model)  # type: ignore[arg-type]
        run_annotate(runner, version, (), model)
        packed = run_pack(runner, version, ("min_shards=2",))
        return finish(storage, version, (), packed), runner.done
