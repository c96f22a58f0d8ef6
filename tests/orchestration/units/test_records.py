"""Records of strangers: what has the wrong shape is one line, whatever it is; what we write is read again."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestration.units.records import (
    Attempt,
    QuarantineRecord,
    RejectedPiece,
    SampleRecord,
    UnitRecord,
)
from talkinghead.schema import Member, Rejection

UNIT = UnitRecord(
    job="ingest",
    key="a",
    pkey="0" * 16,
    samples=[
        SampleRecord(
            key="a",
            num_frames=3,
            members=[Member(suffix="mp4", offset=512, size=7)],
            sha256="0" * 64,
            scores={"sharpness": -1.5, "jitter": None, "frames": 3},
        )
    ],
    rejected=[RejectedPiece(key="a-cut01", rejection=Rejection(reason="no_face", score=0.25))],
    file="units/ingest/ca/a.0000000000000000.tar",
    file_bytes=1 << 40,
    file_sha256="1" * 64,
    details={"person": None, "list": [1, {"deep": [2]}]},
)
FAILED = QuarantineRecord(
    job="ingest", key="b", pkey="0" * 16, source="b.mp4", attempts=[Attempt(cause="timeout", message="too long")]
)
ABSURD = (None, True, -1, 0.5, 1e308, 10**400, 1 << 63, "", "text", [], [[]], {}, {"a": 1}, float("nan"), float("inf"))


def test_what_we_write_is_read_again() -> None:
    assert UnitRecord.from_json(UNIT.to_json()) == UNIT
    assert QuarantineRecord.from_json(FAILED.to_json()) == FAILED
    least = UnitRecord.from_json(b'{"job": "ingest", "key": "a", "pkey": "b"}')
    assert least == UnitRecord(job="ingest", key="a", pkey="b")


def changed(value: Any, other: Any) -> Iterator[Any]:
    """Every copy of a JSON value with one part of it replaced or left out."""
    for place in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        for inner in (other, *changed(value[place], other)):
            result = copy.copy(value)
            result[place] = inner
            yield result
        if isinstance(value, dict):
            yield {name: item for name, item in value.items() if name != place}


@pytest.mark.parametrize("record", [UNIT, FAILED], ids=["commit", "quarantine"])
@pytest.mark.parametrize("absurd", ABSURD, ids=lambda value: str(value)[:10])
def test_absurd_values_are_refused_in_one_line(record: UnitRecord | QuarantineRecord, absurd: object) -> None:
    kind = type(record)
    refused = 0
    for value in (absurd, *changed(json.loads(record.to_json()), absurd)):
        try:
            read = kind.from_json(json.dumps(value).encode(), "records/a.json")
        except ValueError as error:
            refused += 1
            assert "records/a.json is no " in str(error) and "\n" not in str(error) and len(str(error)) < 200
        else:
            if absurd == absurd and absurd != float("inf"):  # in details, which are not written again
                assert kind.from_json(read.to_json()) == read
    assert refused > 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"job": "ingest", "key": "a"}', "UnitRecord lacks pkey; .*"),
        ('{"job": "a", "key": "a", "pkey": "b", "function": "os:abort"}', "UnitRecord has no field 'function'; .*"),
        ('{"job": "a", "key": "a", "pkey": "b", "frames": -1}', "frames is -1, must be 0 or more"),
        ('{"job": "a", "key": "a", "pkey": "b", "samples": [{"key": "c"}]}', "SampleRecord lacks num_frames, .*"),
        ('{"job": "a", "key": "a", "pkey": "b", "seconds": NaN}', "UnitRecord.seconds is nan, must be float"),
        ("[]", r"UnitRecord is \[\], must be an object"),
    ],
)
def test_a_fault_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^x.json is no record of ours: {said}$"):
        UnitRecord.from_json(text.encode(), "x.json")


def test_a_quarantine_record_has_a_cause() -> None:
    with pytest.raises(ValueError, match="it has no attempts"):
        QuarantineRecord.from_json(dataclasses.replace(FAILED, attempts=[]).to_json())


def test_nesting_ends_in_one_line() -> None:
    for text in ("[" * 200_000, '{"details": ' * 200_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            UnitRecord.from_json(text.encode(), "x.json")
