"""The commands of `python -m orchestration`: each a function whose arguments are its options, returning its result."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from ingest.settings import IngestSettings
from orchestration.cluster import Cluster, ClusterSettings
from orchestration.executor import RetrySettings
from orchestration.steps import Runner, ShardSettings, Source
from orchestration.unit import RunError
from talkinghead.schema import check_version
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from annotate.filters import FilterSettings

FIRST_VERSION = "v1"

Data = Annotated[str, tyro.conf.arg(help="Data folder, or a URI such as s3://bucket/folder.")]
Version = Annotated[str | None, tyro.conf.arg(help="Annotation version (default: the newest there is, or v1).")]
Engine = Annotated[str | None, tyro.conf.arg(help="litert, litert-tracking, tasks, tasks-image (default: as before).")]
DetectorEvery = Annotated[int | None, tyro.conf.arg(help="Count faces on every n-th frame (default: as before).")]
Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Filter thresholds as NAME=VALUE, e.g. `--filters yaw_abs_p95_max=50`. Kept in DATASET.json until changed."""

    filters: tuple[str, ...] = ()

    def overrides(self) -> dict[str, float | bool | str | None]:
        """The given thresholds by name; raises `ValueError` for what is no NAME=VALUE."""
        from orchestration.thresholds import parse_thresholds

        return parse_thresholds(self.filters)


def ingest(
    source: Flat[Source],
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    ingest: IngestSettings = IngestSettings(),  # noqa: B008  frozen
) -> str:
    """Read a data set's own metadata; cut and crop its clips to 25 fps and 16 kHz."""
    from orchestration.steps import run_ingest
    from talkinghead.face.resolve import resolve_face_model

    with _runner(data, cluster, retry) as runner:
        run_ingest(runner, source, ingest, resolve_face_model())
    return data


def annotate(
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    version: Version = None,
    engine: Engine = None,
    detector_every: DetectorEvery = None,
) -> str:
    """Annotate the ingested clips: landmarks, mesh, pose, blendshapes, quality."""
    with _runner(data, cluster, retry) as runner:
        _annotate(runner, version, engine, detector_every)
    return data


def _annotate(runner: Runner, version: str | None, engine: str | None, detector_every: int | None) -> str:
    from orchestration.dataset import current_version
    from orchestration.steps import annotate_settings, run_annotate
    from talkinghead.face.resolve import resolve_face_model

    version = version or current_version(runner.storage) or FIRST_VERSION
    given = {"engine": engine, "detector_every": detector_every}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = annotate_settings(runner.storage, version, overrides)
    run_annotate(runner, version, settings, resolve_face_model())
    return version


def shards(
    source: Flat[Source],
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    shards: Flat[ShardSettings],
    thresholds: Flat[Thresholds],
    version: Version = None,
    engine: Engine = None,
    detector_every: DetectorEvery = None,
    ingest: IngestSettings = IngestSettings(),  # noqa: B008  frozen
) -> str:
    """Pack WebDataset shards with their index, after running what is missing before."""
    from orchestration.dataset import finish
    from orchestration.steps import run_ingest, run_pack
    from talkinghead.face.resolve import resolve_face_model

    with _runner(data, cluster, retry) as runner:
        if source.source is not None:
            run_ingest(runner, source, ingest, resolve_face_model())
        version = _annotate(runner, version, engine, detector_every)
        run_pack(runner, version, shards)
        finish(runner.storage, version, _filters(runner, version, thresholds), shards.seed)
    return runner.storage.describe("DATASET.json")


def reannotate(
    data: Data,
    version: Annotated[str, tyro.conf.arg(help="Name of the new annotation version.")],
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    thresholds: Flat[Thresholds],
    engine: Engine = None,
    detector_every: DetectorEvery = None,
) -> str:
    """Annotate the packed clips anew. Writes annotation shards and an index only; media stay untouched."""
    from orchestration.dataset import finish
    from orchestration.jobs.plans import read_plan
    from orchestration.steps import SHARD_PLAN, run_pack
    from shards.manifest import read_manifest

    check_version(version)
    with _runner(data, cluster, retry) as runner:
        read_manifest(runner.storage)
        settings = ShardSettings(**read_plan(runner.storage, SHARD_PLAN)["settings"])
        _annotate(runner, version, engine, detector_every)
        run_pack(runner, version, settings)
        finish(runner.storage, version, _filters(runner, version, thresholds), settings.seed)
    return runner.storage.describe("DATASET.json")


def report(data: Data, version: Version = None) -> str:
    """Write DATA/report: index.html, report.json, inputs.csv."""
    from orchestration.report.page import write_report
    from orchestration.reporting import run_state

    storage = Storage(data)
    return storage.describe(write_report(storage, run_state(storage, version)))


def quarantine(data: Data) -> str:
    """List the inputs that failed, by cause."""
    from orchestration.ledger import causes, quarantined

    records = quarantined(Storage(data))
    for cause, number in causes(records).most_common():
        print(f"{cause}: {number}", file=sys.stderr)
        for record in records:
            if record.cause == cause:
                tries = len(record.attempts)
                print(
                    f"  {record.job} {record.source!r}: {record.attempts[-1].message} ({tries} tries)", file=sys.stderr
                )
    return f"{len(records)} in quarantine"


def retry(data: Data, cause: str | None = None) -> str:
    """Release inputs from quarantine (all, or those of one cause); the next run tries them again."""
    from orchestration.ledger import causes, quarantined, release, writer_lock

    storage = Storage(data)
    with writer_lock(storage):
        known = causes(quarantined(storage))
        released = release(storage, cause)
    if cause is not None and not released:
        raise ValueError(f"nothing is in quarantine for {cause!r}; there is: {', '.join(sorted(known)) or 'nothing'}")
    return f"{len(released)} released; run make shards again"


def demo(data: Data, cluster: Flat[ClusterSettings], retry: Flat[RetrySettings]) -> str:
    """Make the embedded sample and take it through ingest, annotate, shards, verify and report."""
    from pathlib import Path

    from ingest.sample import make_sample
    from shards.verify import verify

    folder = make_sample(Path(data) / "source")
    target = str(Path(data) / "data")
    settings, thresholds = ShardSettings(min_shards=2), Thresholds()
    source = Source(dataset="folder", source=str(folder))
    shards(source, target, cluster, retry, settings, thresholds)
    found = verify(Storage(target), deep=True)
    if found.problems:
        raise RunError(f"the demo's shards have {len(found.problems)} problems, first: {found.problems[0]}")
    return report(target)


@contextlib.contextmanager
def _runner(data: str, cluster: ClusterSettings, retry: RetrySettings) -> Iterator[Runner]:
    """DATA, locked for this process."""
    from orchestration.ledger import writer_lock

    storage = Storage(data)
    with writer_lock(storage), Cluster(cluster) as running:
        yield Runner(storage=storage, cluster=running, retry=retry)


def _filters(runner: Runner, version: str, thresholds: Thresholds) -> FilterSettings:
    from orchestration.dataset import filter_settings

    return filter_settings(runner.storage, version, thresholds.overrides())
