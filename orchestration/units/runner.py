"""DATA and how units run on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.cluster import Cluster
from orchestration.units.executor import RetrySettings, Tally, run_units
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json


@dataclass(frozen=True, kw_only=True)
class Runner:
    """DATA, a cluster, and how hard to try."""

    storage: Storage
    cluster: Cluster
    retry: RetrySettings

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run what is pending and note the wall time of the run; `gpu_share` as for `run_units`."""
        tally = run_units(self.storage, job, units, self.cluster, self.retry, gpu_share=gpu_share)
        if tally.committed or tally.quarantined:
            about = {
                "job": job,
                "units": tally.committed + tally.quarantined,
                "frames": tally.frames,
                "wall_seconds": round(tally.wall_seconds, 3),
            }
            self.storage.create(dataroot.run(job, time.time_ns()), pretty_json(about))
        return tally
