"""Status of DATA while jobs run on it, or after they have: progress, speed and time left, quarantine, commands.

Everything comes from DATA (plans, records and their times), so it can be asked from any machine that reaches it, also
while nothing runs; what a cluster says of its nodes is added where one is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestration import plans
from orchestration.cluster.overview import Overview
from orchestration.command_records import CommandRecord, command_records
from orchestration.units.ledger import Ledger, causes
from orchestration.units.records import QuarantineRecord, UnitRecord
from talkinghead import dataroot
from talkinghead.files import lease
from talkinghead.files.storage import Storage
from talkinghead.runtime.progress import duration

WINDOW_S = 600.0
"""Time before a job's newest record over which its speed is taken, in seconds."""
QUIET_S = 900.0
"""Time without a record or a sign of life, in seconds, after which a command without an end is called silent."""
COMMANDS = 5
"""Number of commands that are shown."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Progress of one job: every planned unit is done, rejected, quarantined or pending."""

    job: str
    """`ingest`, `annotate-<version>`, …"""
    planned: int
    done: int
    """Units that gave at least one sample or file."""
    rejected: int
    """Units that were judged and gave none."""
    quarantined: dict[str, int]
    """Cause → units."""
    unreadable: int
    """Records that cannot be read; their units, several where it is a segment's, are pending."""
    retried: int
    """Units that are done after more than one try."""
    per_minute: float | None
    """Units a minute over the newest `WINDOW_S` in which any ended; None where two records are not there."""
    newest_s: float | None
    """Time of the newest record, seconds since 1970 by the clock of DATA's place."""

    @property
    def pending(self) -> int:
        """Units without a record."""
        return self.planned - self.done - self.rejected - sum(self.quarantined.values())

    @property
    def left_s(self) -> float | None:
        """Time left at the present speed, in seconds; None where there is no speed."""
        return 60.0 * self.pending / self.per_minute if self.per_minute else None


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of one DATA."""

    data: str
    jobs: list[JobStatus]
    """In the order of the work."""
    commands: list[CommandRecord] = field(default_factory=list)
    """The newest commands, the last first."""
    cluster: Overview | None = None
    """The cluster that was asked for."""
    lease_s: float | None = None
    """Time of the newest sign of life of the command that writes, seconds since 1970 by the clock of DATA's place."""
    holder: lease.Content | None = None
    """Command that has, or last had, the right to write."""

    def running(self, now_s: float) -> CommandRecord | None:
        """The newest command, if it has no end, and records or its signs of life came lately."""
        newest = self.commands[0] if self.commands else None
        if newest is None or newest.ended is not None:
            return None
        holder = self.holder
        if holder is not None and (holder.ended or (holder.host, holder.process.pid) != (newest.host, newest.pid)):
            return None  # whoever lives there, it is another one
        last = max([self.lease_s or 0.0, *(job.newest_s or 0.0 for job in self.jobs)])
        begun = _seconds(newest.started)
        return newest if now_s - max(last, begun) < QUIET_S else None

    def as_json(self, now_s: float) -> dict[str, object]:
        """The status as a JSON object."""
        return {
            "data": self.data,
            "running": self.running(now_s) is not None,
            "jobs": [
                {
                    "job": job.job,
                    "planned": job.planned,
                    "done": job.done,
                    "rejected": job.rejected,
                    "quarantined": sum(job.quarantined.values()),
                    "pending": job.pending,
                    "causes": job.quarantined,
                    "unreadable": job.unreadable,
                    "retried": job.retried,
                    "units_per_minute": job.per_minute,
                    "seconds_left": job.left_s,
                }
                for job in self.jobs
            ],
            "commands": self.commands,
            "cluster": self.cluster,
        }

    def lines(self, now_s: float) -> Iterator[str]:
        """The status in lines for people; parts of them may be a stranger's."""
        running = self.running(now_s)
        yield f"{'job':28} {'planned':>9} {'done':>9} {'rejected':>9} {'quarant.':>9} {'pending':>9}  speed"
        for job in self.jobs:
            failed = sum(job.quarantined.values())
            counts = f"{job.planned:9,} {job.done:9,} {job.rejected:9,} {failed:9,} {job.pending:9,}"
            yield f"{job.job[:28]:28} {counts}  {_speed(job, running is not None)}"
        for job in self.jobs:
            for cause, number in job.quarantined.items():
                yield f"quarantined in {job.job}: {number} {cause}"
            if job.retried:
                yield f"done in {job.job} after more than one try: {job.retried}"
            if job.unreadable:
                yield f"records of {job.job} that cannot be read: {job.unreadable} (make verify lists what is damaged)"
        for record in self.commands:
            yield f"{record.started} {record.user}@{record.host}: {record.command}: {_end(record, running)}"
        if self.cluster is not None:
            yield from _cluster_lines(self.cluster)


def data_status(storage: Storage, cluster: Overview | None = None) -> Status:
    """Collect the status of DATA.

    Args:
        storage: DATA, the data set's folder or bucket.
        cluster: What a cluster says of itself, to be shown with it.

    Raises:
        ValueError: Nothing is planned in DATA, or a plan cannot be read.
    """
    names = plans.plan_names(storage, "")
    if not names:
        raise ValueError(f"nothing is ingested in {storage.uri}: name another DATA, or begin with make ingest")
    return Status(
        data=storage.uri,
        jobs=[
            *(_job_status(storage, job, planned) for job, planned in _planned(storage, names)),
            *_pack_statuses(storage, names),
        ],
        commands=command_records(storage, COMMANDS),
        cluster=cluster,
        # A segment may take longer than a command may be silent.
        lease_s=max((file.modified_s or 0.0 for file in storage.list(dataroot.LEASE_FOLDER)), default=None),
        holder=lease.newest(storage),
    )


def _planned(storage: Storage, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every job but those that pack, in the order of the work, and key → provenance key of its units."""
    # All data sets share one ledger of ingest, but each has a plan of its own.
    ingest: dict[str, str] = {}
    for name in names:
        if name.startswith(plans.INGEST_PLAN_PREFIX) and (plan := plans.find_plan(storage, name)):
            ingest |= plan.units
    yield plans.INGEST_JOB, ingest
    for prefixes in ((plans.ANNOTATE_PREFIX,), plans.COLUMN_PREFIXES, (plans.FIT_PREFIX,)):
        for name in names:
            if name.startswith(prefixes) and (plan := plans.find_plan(storage, name)):
                yield name, plan.units


def _pack_statuses(storage: Storage, names: Sequence[str]) -> Iterator[JobStatus]:
    """Progress of the jobs that pack, whose units are the planned shards, in whichever form they were packed."""
    shards = plans.find_shards(storage)
    if shards is None:
        return
    keys = {plans.shard_key(number) for number in range(len(shards.shards))}
    versions = [
        name.partition("-")[2] for name in names if name.startswith((plans.ANNOTATE_PREFIX, *plans.COLUMN_PREFIXES))
    ]
    for job in (plans.PACK_MEDIA_JOB, *map(plans.pack_annotation_job, versions)):
        ledger = Ledger(storage, job)
        found = dict(sorted(ledger.quarantined) + sorted(ledger.committed))
        planned = {key: found.get(key, "") for key in sorted(keys)}
        yield _job_status(storage, job, planned, ledger)


def _job_status(storage: Storage, job: str, planned: Mapping[str, str], ledger: Ledger | None = None) -> JobStatus:
    ledger = ledger or Ledger(storage, job)
    results = list(ledger.results(planned.items()).values())
    done = [record for record in results if isinstance(record, UnitRecord)]
    rejected = [record for record in done if record.rejected and not record.samples]
    failed = [record for record in results if isinstance(record, QuarantineRecord)]
    times = sorted(_times(storage, ledger, set(planned.items())))
    return JobStatus(
        job=job,
        planned=len(planned),
        done=len(done) - len(rejected),
        rejected=len(rejected),
        quarantined=dict(causes(failed).most_common()),
        unreadable=len(ledger.unreadable),
        retried=sum(record.attempts > 1 for record in done),
        per_minute=_per_minute(times),
        newest_s=times[-1] if times else None,
    )


def _times(storage: Storage, ledger: Ledger, planned: set[tuple[str, str]]) -> Iterator[float]:
    """Times at which planned units ended, as far as DATA's place tells when their records were written."""
    for folder in (dataroot.records(ledger.job), dataroot.quarantines(ledger.job)):
        for file in storage.list(folder):
            if file.modified_s is None:
                continue
            if dataroot.keys_of_record(file.path) in planned:
                yield file.modified_s
            elif (found := dataroot.segment_of_record(file.path)) and found[1] in ledger.segments:
                pairs = ledger.segments[found[1]].units().keys() & planned
                yield from [file.modified_s for pair in pairs if ledger.segment_of(pair) == found[1]]


def _per_minute(times: Sequence[float]) -> float | None:
    """Speed over the newest window, of sorted times in seconds: the units that ended after its first time.

    A window reaches back to the time before the newest one, where segments take longer than it is.
    """
    if not times or times[0] == times[-1]:
        return None
    first = next(when for when in times if times[-1] - when <= WINDOW_S)
    if first == times[-1]:
        first = max(when for when in times if when < first)
    return 60.0 * sum(when > first for when in times) / (times[-1] - first)


def _speed(job: JobStatus, is_running: bool) -> str:
    if not job.pending:
        return "complete"
    if not is_running or job.left_s is None or job.per_minute is None:
        return "not running" if not is_running else "no speed yet"
    return f"{job.per_minute:,.1f} a minute, about {duration(job.left_s)} left"


def _end(record: CommandRecord, running: CommandRecord | None) -> str:
    counts = ", ".join(f"{job} {count.units} units" for job, count in record.jobs.items()) or "nothing to do"
    if record.ended is not None:
        return f"ended {record.ended} with status {record.status} ({record.error or counts})"
    where = f" as job {record.ray_job}" if record.ray_job else f" as process {record.pid}"
    return f"running{where}" if record is running else "no end: it was killed, or has said nothing for long"


def _cluster_lines(cluster: Overview) -> Iterator[str]:
    lost = [node for node in cluster.nodes if not node.is_alive]
    living = [node for node in cluster.nodes if node.is_alive]
    cpus, gpus = sum(node.cpus for node in living), sum(node.gpus for node in living)
    yield f"cluster {cluster.address}: {len(living)} nodes live ({cpus:g} CPUs, {gpus:g} GPUs), {len(lost)} are lost"
    number = Counter((node.ip, node.why) for node in lost)
    for (ip, why), count in sorted(number.items()):
        yield f"lost node {ip}{f' ({count} times)' if count > 1 else ''}: {why}"
    for job in cluster.jobs:
        status = job.status.lower() + (f", exit status {job.exit_status}" if job.exit_status else "")
        yield f"job {job.name} ({job.job}): {status}" + (f", begun {job.started}" if job.started else "")


def _seconds(utc: str) -> float:
    try:
        return datetime.fromisoformat(utc).timestamp()
    except ValueError:  # a record may be a stranger's
        return 0.0
