"""Paths of everything under DATA, relative to it.

    DATASET.json                       what the data set is; replaced last
    clips-000000.tar …                 media shards, immutable
    ann/<version>/ann-000000.tar …     annotation shards, and those of derived columns
    fits/<name>/<sha256>.npz           global fits; DATASET.json names them
    pins/<hash>.json                   which versions a run of training reads
    index/<version>.<hash>.parquet     one row per sample: offsets, scores, split, keep/reason; DATASET.json says which
    catalog/<dataset>.parquet          one row per clip of the data set's metadata
    catalog/<dataset>.sources.parquet  size, time and sha256 of each source file
    catalog/related.json.gz            split groups that show the same recording; a cache that may be deleted
    units/<job>/<aa>/<key>.<pkey>.tar  output of one unit; ingest's and annotate's stay after packing, those of derived
                                       columns are deleted then
    units/<job>/<aa>/<segment>.<attempt>.tar   output of a segment: of units that are committed together
    records/<job>/<aa>/<key>.<pkey>.json   commit record: the unit counts from here on
    records/<job>/<aa>/<segment>.parquet   commit record of a segment: which of its tars counts, a row for each unit
    quarantine/<job>/<key>.<pkey>.json     inputs that failed, with the cause
    released/<job>/…                   quarantine records of units that were released for another try
    damaged/<path>.<number>            records, plans and catalogs that could not be read, set aside
    removed/<time>-<id>.json           what was taken out: counts, and hashes by which it stays out
    plans/<name>.parquet               what each job has to do: a row for each unit, or each sample of a shard
    runs/<time>-<job>.json             wall time of each pass of a job
    commands/<time>-<id>.json          who ran what, when, with which versions, and how it ended
    report/                            index.html, report.json, inputs.csv
    tmp/                               writes in progress
    lease/<epoch>.json                 who writes: the highest epoch counts (`talkinghead.files.lease`)

`<aa>` are two hash digits of the key, so that no folder grows large; `<pkey>` is the provenance key; `<segment>` begins
with `segment-`, which no key does, and `<attempt>` tells the tars of several workers apart.

A job writes and removes nothing through links in a local DATA, which may be a stranger's. Who keeps folders of it on
another disk says so: TALKINGHEAD_LINKED_FOLDERS=units,records names those directly in DATA that may be links. Reading
follows links. Only files with names of these forms are ever removed.
"""

from __future__ import annotations

import hashlib
import re

# Forward slashes on every system: the same names are keys in an object store.
DATASET_JSON = "DATASET.json"
REPORT_FOLDER = "report"
INDEX_FOLDER = "index"
QUARANTINE_FOLDER = "quarantine"
DAMAGED_FOLDER = "damaged"
RUNS_FOLDER = "runs"
COMMANDS_FOLDER = "commands"
TEMPORARY_FOLDER = "tmp"
LEASE_FOLDER = "lease"
FOLDERS = frozenset(
    {
        "ann",
        "catalog",
        "fits",
        "pins",
        "plans",
        "records",
        "released",
        "removed",
        "units",
        COMMANDS_FOLDER,
        DAMAGED_FOLDER,
        INDEX_FOLDER,
        QUARANTINE_FOLDER,
        REPORT_FOLDER,
        RUNS_FOLDER,
    }
)
"""Folders directly in DATA whose files stay."""

_VERSION = r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}"
_KEYS = r"([A-Za-z0-9_-]{1,90})\.([A-Za-z0-9_-]{1,90})"  # of a unit: its key and its provenance key
_SEGMENT = r"segment-[A-Za-z0-9_-]{1,82}"


def catalog(dataset: str) -> str:
    """Catalog table of one data set."""
    return f"catalog/{dataset}.parquet"


def sources(dataset: str) -> str:
    """Fingerprints of one data set's source files."""
    return f"catalog/{dataset}.sources.parquet"


def plan(name: str) -> str:
    """Plan of one job (`ingest-<dataset>`, `annotate-<version>`, `derive-<version>`, …) or of the shards (`shards`)."""
    return f"plans/{name}.parquet"


def old_plan(name: str) -> str:
    """Plan as releases before tables wrote it."""
    return f"plans/{name}.json"


def fit(name: str, sha256: str) -> str:
    """File of a global fit."""
    return f"fits/{name}/{sha256}.npz"


def pin(run: str) -> str:
    """File that says which versions a run reads; `run` is the run's name: host and folder."""
    return f"pins/{hashlib.sha256(run.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.json"


def index(version: str, sha256: str) -> str:
    """Index table of one annotation version; a changed table gets another name, so that no reader mixes two."""
    return f"{INDEX_FOLDER}/{version}.{sha256[:12]}.parquet"


def units(job: str) -> str:
    """Folder of the outputs of a job's units."""
    return f"units/{job}"


def unit(job: str, key: str, pkey: str) -> str:
    """Output tar of one unit."""
    return f"{units(job)}/{_bucket(key)}/{key}.{pkey}.tar"


def record(job: str, key: str, pkey: str) -> str:
    """Commit record of one unit."""
    return f"{records(job)}/{_bucket(key)}/{key}.{pkey}.json"


def segment_record(job: str, segment: str) -> str:
    """Commit record of a segment."""
    return f"{records(job)}/{_bucket(segment)}/{segment}.parquet"


def records(job: str) -> str:
    """Folder of a job's commit records."""
    return f"records/{job}"


def quarantines(job: str) -> str:
    """Folder of a job's quarantine records."""
    return f"{QUARANTINE_FOLDER}/{job}"


def quarantine(job: str, key: str, pkey: str) -> str:
    """Quarantine record of one unit."""
    return f"{quarantines(job)}/{key}.{pkey}.json"


def released(job: str, key: str, pkey: str, number: int) -> str:
    """Quarantine record of a unit that was released for another try; `number` tells several of them apart."""
    return f"released/{job}/{key}.{pkey}.{number}.json"


def damaged(path: str, number: int) -> str:
    """Place of a file that could not be read, and was set aside; `number` tells several of one path apart."""
    return f"{DAMAGED_FOLDER}/{path}.{number}"


def undamaged(path: str) -> str:
    """Path that a file had which was set aside: inverse of `damaged`."""
    return path.removeprefix(f"{DAMAGED_FOLDER}/").rpartition(".")[0]


def run(job: str, time_ns: int) -> str:
    """Wall time of one pass of a job, recorded at `time_ns`."""
    return f"{RUNS_FOLDER}/{time_ns}-{job}.json"


def lease(epoch: int) -> str:
    """File of one epoch of the lease of DATA."""
    return f"{LEASE_FOLDER}/{epoch:09d}.json"


def epoch_of_lease(path: str) -> int | None:
    """Epoch whose file has this path; None: it is no lease's."""
    found = re.fullmatch(rf"{LEASE_FOLDER}/(\d{{9,12}})\.json", path)
    return int(found[1]) if found else None


def command(time_ns: int, name: str) -> str:
    """Record of one command, begun at `time_ns`."""
    return f"{COMMANDS_FOLDER}/{time_ns}-{name}.json"


def is_index(path: str) -> bool:
    """Whether a path has the form of an index table's."""
    return re.fullmatch(rf"{INDEX_FOLDER}/{_VERSION}\.[0-9a-f]{{12}}\.parquet", path) is not None


def is_unit(path: str, job: str) -> bool:
    """Whether a path has the form of an output of a job's units."""
    return re.fullmatch(rf"{re.escape(units(job))}/[0-9a-f]{{2}}/{_KEYS}\.tar", path) is not None


def keys_of_record(path: str) -> tuple[str, str] | None:
    """Key and provenance key of the unit whose commit or quarantine record has this path; None: it is no record's."""
    found = re.fullmatch(rf"(?:records/[^/]+/[0-9a-f]{{2}}|{QUARANTINE_FOLDER}/[^/]+)/{_KEYS}\.json", path)
    return (found[1], found[2]) if found else None


def segment_of_record(path: str) -> tuple[str, str] | None:
    """Job and name of the segment whose commit record has this path; None: it is no such record's."""
    found = re.fullmatch(rf"records/([^/]+)/[0-9a-f]{{2}}/({_SEGMENT})\.parquet", path)
    return (found[1], found[2]) if found else None


def segment_of_tar(path: str) -> tuple[str, str] | None:
    """Job and name of the segment whose output, of whatever attempt, has this path; None: it is no such output's."""
    found = re.fullmatch(rf"units/([^/]+)/[0-9a-f]{{2}}/({_SEGMENT})\.[0-9a-f]{{16}}\.tar", path)
    return (found[1], found[2]) if found else None


def _bucket(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:2]
