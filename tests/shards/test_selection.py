"""Samples are chosen by scores, licence, person, group and labels, and each rule says how many it left out."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.reader import ShardReader
from shards.selection import Selection, bounds, values
from talkinghead.files.storage import Storage
from tests.support.indexes import edit_rows
from tests.support.packed_data import add_derived
from tests.support.shard_data import LENGTHS, add_trace, made_of, sample_key

LICENCES = {number: "CC-BY-4.0" if number % 3 else "CC0-1.0" for number in range(len(LENGTHS))}
PERSONS = {number: f"Person {number // 4}" if number < 5 else None for number in range(len(LENGTHS))}


@pytest.fixture
def peopled(copied: Storage) -> Storage:
    """The data set with licences and persons."""

    def change(rows: list) -> None:
        for place, row in enumerate(rows):
            number = number_of(row.key)
            rows[place] = dataclasses.replace(row, licence=LICENCES[number], person=PERSONS[number])

    edit_rows(copied, change)
    return copied


def number_of(key: str) -> int:
    return int(key.split("_")[1][:2])


def chosen(storage: Storage, **rules) -> set[int]:
    return {number_of(key) for key in ShardReader(storage, split=None, kept=False, **rules).keys}


def test_by_scores_of_the_annotation_and_of_columns(traced):
    everything = range(len(LENGTHS))
    assert chosen(traced, at_most={"sharpness": 3.0}) == {0, 1, 2}
    assert chosen(traced, at_least={"sharpness": 3.0}, at_most={"sharpness": 6.0}) == {2, 3, 4}
    assert chosen(traced, at_most={"yaw": 3.0}) == set(everything) - {5}, "clip 5 has no such score"
    # The column need not be named: its newest version is opened. Clip 4 was not measured.
    for name in ("confidence", "trace.confidence"):
        assert chosen(traced, at_least={name: 1.0}) == {2, 3, 5, 6, 7, 8}
    reader = ShardReader(traced, at_least={"confidence": 1.0}, columns=("mesh",))
    assert list(reader.joined) == ["trace"] and reader.joined["trace"].startswith("trace-")
    assert reader[0].annotation("trace_fast", 0, 1).shape == (2, 3)
    assert chosen(traced, at_most={"annotation.sharpness": 3.0}) == {0, 1, 2}


def test_by_labels(traced):
    assert chosen(traced, label={"side": ("left",)}) == {1, 3, 5, 7}
    assert chosen(traced, label={"trace.side": ("left", "right")}, join=("trace",)) == {0, 1, 2, 3, 4, 5, 7, 8}
    with pytest.raises(
        ValueError, match=r"label side=up, only left, right: labels come from make derive COLUMNS=trace"
    ):
        ShardReader(traced, label={"side": ("left", "up")})
    with pytest.raises(ValueError, match=r"no label 'mood'.*trace\.side.*make derive"):
        ShardReader(traced, label={"mood": ("happy",)})


def test_by_licence_person_and_group(peopled):
    assert chosen(peopled, licence=("CC0-1.0",)) == {0, 3, 6}
    assert chosen(peopled, licence=("CC0-1.0", "CC-BY-4.0")) == set(range(9))
    assert chosen(peopled, person=("Person 0",)) == {0, 1, 2, 3}
    assert chosen(peopled, person=("Person 1", "group-4")) == {4, 8}
    assert chosen(peopled, person=("group-2",)) == {5}, "clip 4 of that group has a name"
    assert chosen(peopled, split_group=("group-0", "group-4")) == {0, 1, 8}
    for rules, message in (
        ({"licence": ("CC0-1.0", "MIT")}, r"the licence 'MIT', only CC-BY-4\.0, CC0-1\.0"),
        (
            {"person": ("Person 0", "Nobody")},
            r"split group 'Nobody', only to Person 0, Person 1, group-2, group-3, group-4",
        ),
        # Whoever has a name is not found by the group.
        ({"person": ("group-0",)}, r"split group 'group-0', only to Person 0"),
        ({"split_group": ("group-9",)}, r"the split group 'group-9', only group-0"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardReader(peopled, **rules)


def test_what_there_is_is_bounded(copied):
    def change(rows: list) -> None:
        for place, row in enumerate(rows):
            rows[place] = dataclasses.replace(row, person=f"P{place}" + "\x1b[31m" * 10_000)

    edit_rows(copied, change)
    with pytest.raises(ValueError) as raised:
        ShardReader(copied, person=("nobody",))
    assert len(str(raised.value)) < 2_000 and str(raised.value).isprintable()


def test_a_score_that_nobody_has_and_one_that_two_have(traced, copied):
    with pytest.raises(ValueError, match=r"no score 'loudness'.*sharpness, trace\.confidence, yaw: .*make reannotate"):
        ShardReader(traced, at_most={"loudness": 0.0})
    with pytest.raises(ValueError, match=r"no score 'trace\.loudness'"):
        ShardReader(traced, at_most={"trace.loudness": 0.0})
    trace = add_trace(copied)
    scores = {sample_key(number): {"confidence": float(number), "yaw": 1.0} for number in range(9)}
    twin = add_derived(copied, made_of("twin", scores=["confidence", "yaw"]), {}, scores=scores)
    for join in ((), ("trace", "twin"), ("twin", "trace")):
        with pytest.raises(ValueError, match=r"both have the score 'confidence': write \w+\.confidence or") as raised:
            ShardReader(copied, join=join, at_least={"confidence": 1.0})
        assert trace in str(raised.value) and twin in str(raised.value)
        assert chosen(copied, join=join, at_least={"twin.confidence": 3.0}) == set(range(3, 9))
        assert chosen(copied, join=join, at_least={"trace.confidence": 3.0}) == {6, 7, 8}
    assert chosen(copied, join=("twin",), at_least={"confidence": 3.0}) == set(range(3, 9)), "only one is joined"
    # The annotation comes first.
    assert chosen(copied, join=("twin",), at_least={"yaw": 2.0}) == set(range(9)) - {5}
    assert chosen(copied, join=("twin",), at_least={"twin.yaw": 2.0}) == set()


def test_the_newest_version_that_has_the_score_is_opened(copied):
    def add(number: int, scores: list[str], value: float) -> str:
        about = made_of("depth", scores=scores, parameters={"number": number})
        return add_derived(copied, about, {}, scores={sample_key(k): dict.fromkeys(scores, value) for k in range(9)})

    add(0, ["depth"], 1.0)
    second = add(1, ["depth"], 2.0)
    add(2, ["other"], 3.0)
    reader = ShardReader(copied, split=None, kept=False, at_least={"depth": 2.0})
    assert reader.joined == {"depth": second} and len(reader) == 9
    # What the user joins is what counts.
    with pytest.raises(ValueError, match=f"has no score 'depth', but {second} has: join depth@{second}"):
        ShardReader(copied, join=("depth",), at_least={"depth": 2.0})


def test_a_score_that_was_measured_for_nobody_chooses_nobody(copied):
    add_derived(copied, made_of("depth", scores=["depth"], labels=["far"]), {})
    assert chosen(copied, at_least={"depth": -1e9}) == set()
    reader = ShardReader(copied, join=("depth",))
    assert reader[0].score("depth") is None and reader[0].label("far") is None
    with pytest.raises(ValueError, match="label far=yes, only none"):
        ShardReader(copied, label={"far": ("yes",)})


def test_each_rule_says_what_it_left_out(traced, caplog):
    with caplog.at_level(logging.INFO):
        reader = ShardReader(
            traced,
            split=None,
            columns=("mesh",),
            at_least={"confidence": 1.0},
            at_most={"sharpness": 9.0},
            licence=("CC0-1.0",),
            label={"side": ("left",)},
        )
    assert reader.left_out == [
        ("no mesh", 0),
        ("confidence below 1, or not measured", 3),
        ("sharpness above 9, or not measured", 2),
        ("licence other than CC0-1.0", 0),
        ("label side other than left", 2),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 8 samples are left out: confidence below 1, or not measured",
        "2 of 5 samples are left out: sharpness above 9, or not measured",
        "2 of 3 samples are left out: label side other than left",
    ]
    assert [number_of(key) for key in reader.keys] == [3]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(0, 5) | st.none(),
    st.floats(0, 13) | st.none(),
    st.lists(st.sampled_from([f"group-{number}" for number in range(5)]), max_size=3),
    st.lists(st.sampled_from(["left", "right"]), max_size=2),
)
def test_rules_are_those_of_each_row(traced, least, most, groups, sides):
    """All rules together, on columns of the index, do what one sample after the other would say."""
    selection = Selection(
        at_least={} if least is None else {"confidence": least},
        at_most={} if most is None else {"sharpness": most},
        split_group=tuple(groups),
        label={"side": tuple(sides)} if sides else {},
    )
    everything = ShardReader(traced, split=None, join=("trace",))
    expected = []
    for place in range(len(everything)):
        sample = everything[place]
        confidence, sharpness = sample.score("confidence"), sample.score("sharpness")
        if (
            (least is None or (confidence is not None and confidence >= least))
            and (most is None or (sharpness is not None and sharpness <= most))
            and (not groups or sample.index.split_group in groups)
            and (not sides or sample.label("side") in sides)
        ):
            expected.append(sample.key)
    reader = ShardReader(traced, split=None, **selection.arguments())
    assert reader.keys == expected
    assert len(everything) - sum(count for _, count in reader.left_out) == len(reader)


def test_rules_as_texts():
    assert bounds(["a=1", "mouth.b=-2.5"], "--x") == {"a": 1.0, "mouth.b": -2.5}
    assert values(["emotion=happy", "emotion=a=b", "m.k=v"], "--x") == {"emotion": ("happy", "a=b"), "m.k": ("v",)}
    for wrong in ("a", "=1", "a=", "a=b", "a=nan", "a=inf"):
        with pytest.raises(ValueError, match=f"--x .*{wrong.partition('=')[0]}"):
            bounds([wrong], "--x")
    with pytest.raises(ValueError, match="once"):
        bounds(["a=1", "a=2"], "--x")
    for wrong in ({"at_least": {"a b": 1.0}}, {"at_most": {"a.b.c": 1.0}}, {"at_most": {"a": np.nan}},
                  {"label": {"a.": ("x",)}}, {"label": {"a": ()}}):  # fmt: skip
        with pytest.raises(ValueError):
            Selection(**wrong)
