"""Where everything stands under DATA.

    DATASET.json                       what the data set is; replaced last
    clips-000000.tar …                 media shards, immutable
    ann/<version>/ann-000000.tar …     annotation shards
    index/<version>.parquet            one row per sample: offsets, scores, split, keep/reason
    catalog/<dataset>.parquet          one row per clip of the data set's metadata
    catalog/<dataset>.sources.parquet  size, time and sha256 of each source file
    units/<job>/<aa>/<key>.<pkey>.tar  output of one unit of ingest or annotate, until it is packed (and after)
    records/<job>/<aa>/<key>.<pkey>.json   commit record: the unit counts from here on
    quarantine/<job>/<key>.<pkey>.json     inputs that failed, with the cause
    released/<job>/…                   quarantine records of units that were released for another try
    plans/<name>.json                  what each job has to do: keys and provenance keys, or keys by shard
    runs/<time>-<job>.json             wall time of each run of a job
    report/                            index.html, report.json, inputs.csv
    tmp/                               writes in progress

`<aa>` are two hash digits of the key, so that no folder grows large; `<pkey>` is the provenance key.
"""

from __future__ import annotations

import hashlib

DATASET_JSON = "DATASET.json"
REPORT_FOLDER = "report"


def catalog(dataset: str) -> str:
    """Catalog table of one data set."""
    return f"catalog/{dataset}.parquet"


def sources(dataset: str) -> str:
    """Fingerprints of one data set's source files."""
    return f"catalog/{dataset}.sources.parquet"


def plan(name: str) -> str:
    """Plan of one job (`ingest-<dataset>`, `annotate-<version>`) or of the shards (`shards`)."""
    return f"plans/{name}.json"


def index(version: str) -> str:
    """Index table of one annotation version."""
    return f"index/{version}.parquet"


def unit(job: str, key: str, pkey: str) -> str:
    """Output tar of one unit."""
    return f"units/{job}/{_bucket(key)}/{key}.{pkey}.tar"


def record(job: str, key: str, pkey: str) -> str:
    """Commit record of one unit."""
    return f"records/{job}/{_bucket(key)}/{key}.{pkey}.json"


def records(job: str) -> str:
    """Folder of a job's commit records."""
    return f"records/{job}"


def quarantine(job: str, key: str, pkey: str) -> str:
    """Quarantine record of one unit."""
    return f"quarantine/{job}/{key}.{pkey}.json"


def _bucket(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:2]
