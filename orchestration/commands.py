"""The commands of `python -m orchestration`: each a function whose arguments are its options, returning its result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from annotate.columns import COLUMNS, FITS
from annotate.filters import FilterSettings
from annotate.latents import LatentSettings
from annotate.settings import AnnotateSettings
from ingest.settings import IngestSettings
from orchestration.cluster import Cluster, ClusterSettings
from orchestration.command_records import recorded
from orchestration.jobs.annotate import run_annotate
from orchestration.jobs.catalogs import warn_of_lost_catalogs
from orchestration.jobs.derive import run_derive, unset
from orchestration.jobs.finish import current_version, finish
from orchestration.jobs.fit import run_fit
from orchestration.jobs.ingest import Source, run_ingest
from orchestration.jobs.pack import run_pack
from orchestration.outcomes import current_quarantine
from orchestration.overrides import names_of
from orchestration.removal_commands import Data, finish_pending, locked
from orchestration.units.executor import RetrySettings
from orchestration.units.ledger import causes, release, writer_lock
from orchestration.units.unit import JobStoppedError
from orchestration.verdict import CountedRunner, verdict
from shards.manifest import read_manifest
from shards.plan import ShardSettings
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.foreign import warn_of_owner
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.runtime.command_line import Incomplete
from talkinghead.runtime.errors import one_line
from talkinghead.runtime.ray_cluster import cluster_address
from talkinghead.schema import check_version
from train.clip_choice import ClipChoice

FIRST_VERSION = "v1"
"""Annotation version of a new data set."""

# The options that several commands share. Settings come as NAME=VALUE texts, because what is not named keeps its value
# in DATA: an option with a default of its own could not tell "not named" from "set to the default".
Names = tuple[str, ...]
Version = Annotated[str | None, tyro.conf.arg(help="Annotation version (default: the newest there is, or v1).")]
Engine = Annotated[str | None, tyro.conf.arg(help="Short for --annotate engine=…")]
IngestNames = Annotated[
    Names, tyro.conf.arg(name="ingest", help=f"NAME=VALUE …; kept in DATA. Defaults: {names_of(IngestSettings)}")
]
AnnotateNames = Annotated[
    Names, tyro.conf.arg(name="annotate", help=f"NAME=VALUE …; kept in DATA. Defaults: {names_of(AnnotateSettings)}")
]
ShardNames = Annotated[
    Names, tyro.conf.arg(name="shards", help=f"NAME=VALUE …; kept in DATA. Defaults: {names_of(ShardSettings)}")
]
FilterNames = Annotated[
    Names, tyro.conf.arg(name="filters", help=f"NAME=VALUE …; kept in DATA. Defaults: {names_of(FilterSettings)}")
]
ColumnSettings = dataclasses.make_dataclass(
    "ColumnSettings",
    [
        (name, column.settings, dataclasses.field(default_factory=partial(unset, column.settings)))
        for name, column in COLUMNS.items()
    ],
    frozen=True,
    kw_only=True,
)
"""Settings of every derived column, each under its name."""
FitSettings = dataclasses.make_dataclass(
    "FitSettings",
    [(name, fit.settings, dataclasses.field(default_factory=fit.settings)) for name, fit in FITS.items()],
    frozen=True,
    kw_only=True,
)
"""Settings of every global fit, each under its name."""
Flat = tyro.conf.OmitArgPrefixes
Annotation = Annotated[str | None, tyro.conf.arg(help="Annotation version to read (default: the newest).")]


def ingest(
    source: Flat[Source],
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    ingest: IngestNames = (),
) -> str | Incomplete:
    """Read a data set's own metadata; cut and crop its clips to 25 fps and 16 kHz."""
    with _runner(data, cluster, retry) as runner:
        run_ingest(runner, source, ingest, resolve_face_model())
    return verdict(runner, runner.storage.uri)


def annotate(
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    version: Version = None,
    engine: Engine = None,
    annotate: AnnotateNames = (),
) -> str | Incomplete:
    """Annotate the ingested clips: landmarks, mesh, pose, blendshapes, quality."""
    with _runner(data, cluster, retry) as runner:
        warn_of_lost_catalogs(runner.storage)
        _annotate(runner, version, engine, annotate)
    return verdict(runner, runner.storage.uri)


def shards(
    source: Flat[Source],
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    version: Version = None,
    engine: Engine = None,
    ingest: IngestNames = (),
    annotate: AnnotateNames = (),
    shards: ShardNames = (),
    filters: FilterNames = (),
) -> str | Incomplete:
    """Pack WebDataset shards with their index, after running what is missing before."""
    with _runner(data, cluster, retry) as runner:
        # Without SOURCE the clips that DATA already holds are annotated and packed.
        if source.source is not None:
            run_ingest(runner, source, ingest, resolve_face_model())
        elif ingest:
            raise ValueError("--ingest changes how sources are ingested, so it needs --source")
        else:
            warn_of_lost_catalogs(runner.storage)
        # Each job runs only the units that are not done, so that one command takes DATA from any state to its end.
        version = _annotate(runner, version, engine, annotate)
        packed = run_pack(runner, version, shards)
        manifest = finish(runner.storage, version, filters, packed)
    return verdict(runner, runner.storage.describe("DATASET.json"), manifest.counts["samples"])


def reannotate(
    data: Data,
    version: Annotated[str, tyro.conf.arg(help="Name of the new annotation version.")],
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    engine: Engine = None,
    annotate: AnnotateNames = (),
    filters: FilterNames = (),
) -> str | Incomplete:
    """Annotate all clips anew as another version; packed media stay untouched (clips not yet packed are packed too)."""
    check_version(version)
    # Only on a finished data set, so that a mistyped DATA is an error at once.
    with _runner(data, cluster, retry) as runner:
        read_manifest(runner.storage)
        warn_of_lost_catalogs(runner.storage)
        _annotate(runner, version, engine, annotate)
        packed = run_pack(runner, version)
        manifest = finish(runner.storage, version, filters, packed)
    return verdict(runner, runner.storage.describe("DATASET.json"), manifest.counts["samples"])


def derive(
    columns: Annotated[str, tyro.conf.arg(help=f"Columns to make, with commas between them: {', '.join(COLUMNS)}.")],
    settings: Annotated[ColumnSettings, tyro.conf.arg(name="")],  # pyright: ignore[reportInvalidTypeForm]
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    version: Annotated[
        str | None, tyro.conf.arg(help="Name of the version of a single column (default: <column>-<hash>).")
    ] = None,
    annotation: Annotation = None,
    use: Annotated[
        Names, tyro.conf.arg(help="COLUMN@VERSION of other columns that these read (default: the newest of each).")
    ] = (),
) -> str | Incomplete:
    """Make derived columns of the packed samples: each a version of its own, which trainings join by name."""
    names = _chosen(columns, COLUMNS, "derived column")
    _refuse_ignored(settings, ColumnSettings(), names, "--columns")
    if version is not None and len(names) > 1:
        raise ValueError("--version names the version of one column: make one at a time")
    with _runner(data, cluster, retry) as runner:
        for name in names:
            # What several columns at once are told to use belongs to those that read it.
            used = [text for text in use if text.partition("@")[0] in COLUMNS[name].needs] if len(names) > 1 else use
            run_derive(runner, COLUMNS[name], getattr(settings, name), version=version, annotation=annotation, use=used)
    return verdict(runner, runner.storage.describe("DATASET.json"))


def latents(
    networks: Flat[LatentSettings],
    data: Data,
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    version: Annotated[
        str | None, tyro.conf.arg(help="Name of the version (default: latents-<hash of weights and size>).")
    ] = None,
) -> str | Incomplete:
    """Encode every frame of the packed clips once, for trainings to read: short for derive --columns latents."""
    with _runner(data, cluster, retry) as runner:
        run_derive(runner, COLUMNS["latents"], networks, version=version)
    return verdict(runner, runner.storage.describe("DATASET.json"))


def basis(
    data: Data,
    settings: Annotated[FitSettings, tyro.conf.arg(name="")],  # pyright: ignore[reportInvalidTypeForm]
    clips: Flat[ClipChoice],
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
    fits: Annotated[str, tyro.conf.arg(help="Fits to make, with commas between them.")] = ",".join(FITS),
) -> str | Incomplete:
    """Make global fits over the kept training clips, which trainings and derived columns read."""
    names = _chosen(fits, FITS, "global fit")
    _refuse_ignored(settings, FitSettings(), names, "--fits")
    with _runner(data, cluster, retry) as runner:
        for name in names:
            run_fit(runner, FITS[name], getattr(settings, name), clips)
    return verdict(runner, runner.storage.describe("DATASET.json"))


def report(data: Data, version: Version = None) -> str | Incomplete:
    """Write DATA/report: index.html, report.json, inputs.csv."""
    from orchestration.report.accounting import complaint
    from orchestration.report.page import write_report
    from orchestration.report.state import data_state

    storage = Storage(data)
    state = data_state(storage, version)
    if storage.local_root is not None:
        warn_of_owner(storage.local_root)
    page = storage.describe(write_report(storage, state))
    wrong = complaint(storage)
    return page if wrong is None else Incomplete(page, wrong)


def status(
    data: Data,
    ray_address: Annotated[
        str | None, tyro.conf.arg(help="Cluster whose nodes and submitted jobs are shown, too (default: $RAY_ADDRESS).")
    ] = None,
    json: Annotated[bool, tyro.conf.arg(help="Print one JSON object instead of lines.")] = False,
) -> str:
    """Show how far the jobs of DATA are: counts, speed, time left, quarantine by cause, who ran what, lost nodes."""
    from orchestration.cluster.overview import overview
    from orchestration.report.status import data_status

    address = cluster_address(ray_address)
    found = data_status(Storage(data), None if address is None else overview(address))
    now_s = time.time()
    if json:
        return canonical_json(found.as_json(now_s)).decode()
    return "\n".join(map(one_line, found.lines(now_s)))


def quarantine(data: Data) -> str:
    """List the inputs that failed, by cause."""
    records = current_quarantine(Storage(data))
    for cause, number in causes(records).most_common():
        print(f"{one_line(cause)}: {number}", file=sys.stderr)
        # File names with quotes around them: they may hold any character. All texts may be a stranger's.
        for record in records:
            if record.cause == cause:
                tries = len(record.attempts)
                message = f"{one_line(record.attempts[-1].message)} ({tries} tries)"
                print(f"  {record.job} {record.source!r}: {message}", file=sys.stderr)
    return f"{len(records)} in quarantine"


def retry(data: Data, cause: str | None = None) -> str:
    """Release inputs from quarantine (all, or those of one cause); the next command tries them again."""
    storage = Storage(data)
    # A mistyped DATA must not look like an empty quarantine.
    if not storage.list("plans"):
        raise ValueError(f"nothing is ingested in {storage.uri}")
    with locked(storage):
        records = current_quarantine(storage)
        released = release(storage, records, cause)
    if cause is not None and not released:
        there = ", ".join(sorted(causes(records))) or "nothing"
        raise ValueError(f"nothing is in quarantine for {cause!r}; there is: {there}")
    return f"{len(released)} released; run the command that failed (make shards, derive, basis) again"


def demo(
    data: Annotated[Path, tyro.conf.arg(help="Local folder.")],
    cluster: Flat[ClusterSettings],
    retry: Flat[RetrySettings],
) -> str:
    """Take the embedded sample through the data side, train the four tiny models on it, and animate a portrait."""
    from ingest.sample import make_sample
    from orchestration.demo import run_demo
    from shards.verify import verify

    # The functions of the commands themselves. Two shards, because the sample would fit into one.
    target = str(data / "data")

    def make_shards() -> None:
        folder = make_sample(data / "source")
        shards(Source(source=str(folder)), target, cluster, retry, shards=("min_shards=2",))
        found = verify(Storage(target), deep=True)
        if found.problems:
            raise JobStoppedError(f"the demo's shards have {len(found.problems)} problems, first: {found.problems[0]}")
        report(target)

    return str(run_demo(data, make_shards))


def _annotate(runner: CountedRunner, version: str | None, engine: str | None, overrides: Names) -> str:
    """Run the annotate job; returns the version: the named one, else the newest in DATA, else `FIRST_VERSION`."""
    version = version or current_version(runner.storage) or FIRST_VERSION
    if engine is not None:
        overrides = (*overrides, f"engine={engine}")
    run_annotate(runner, version, overrides, resolve_face_model())
    return version


def _chosen(text: str, known: Mapping[str, object], what: str) -> list[str]:
    """Names out of a text with commas, in the order in which each stands after those it needs."""
    names = [name for part in text.split(",") if (name := part.strip())]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    if not names:
        raise ValueError(f"name a {what}: {', '.join(known)}")
    return [name for name in known if name in names]


def _refuse_ignored(given: Any, defaults: Any, names: Sequence[str], option: str) -> None:
    """Raise `ValueError` when settings are given of what is not made."""
    for field in dataclasses.fields(given):
        if field.name not in names and getattr(given, field.name) != getattr(defaults, field.name):
            raise ValueError(f"--{field.name}.… is given, but {field.name} is not among {option}")


@contextlib.contextmanager
def _runner(data: str, cluster: ClusterSettings, retry: RetrySettings) -> Iterator[CountedRunner]:
    """Runner of units on DATA, which is locked for this process, with Ray, which starts for the first pending unit."""
    storage = Storage(data)
    with writer_lock(storage), recorded(storage), Cluster(cluster) as running:
        finish_pending(storage)
        yield CountedRunner(storage=storage, cluster=running, retry=retry)
