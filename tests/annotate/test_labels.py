"""Labels: from tables as programs write them, from metadata of any shape, and one line for what is no table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate import labels
from annotate.labels import LABELS, MATCHED, LabelSettings, read_table
from talkinghead.column import decode_column
from talkinghead.derived import ColumnError, Derived, derived_members, label_code, version_of
from talkinghead.provenance import hash_file
from talkinghead.schema import ClipInfo
from tests.support.shard_data import media_contents


def clip(attributes: dict[str, Any] | None = None, **facts: Any) -> Any:
    """A sample of which the labels see only the facts about the clip."""
    info = json.loads(media_contents(0)["json"]) | {"attributes": attributes or {}} | facts
    return SimpleNamespace(info=ClipInfo.from_json(json.dumps(info)))


def table(folder: Path, text: str | bytes) -> str:
    path = folder / "emotions.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def made(settings: LabelSettings, sample: Any) -> Derived:
    LABELS.provenance(settings)
    return LABELS.open(settings, {}, "cpu")(sample)


def test_a_table_gives_labels_codes_and_a_score(tmp_path: Path) -> None:
    path = table(tmp_path, "person,emotion,level\nM003,happy,3\n\nW011,,1\n")
    settings = LabelSettings(csv=path)
    assert LABELS.provenance(settings) == {"csv": {"name": "emotions.csv", "sha256": hash_file(Path(path)), "rows": 2}}
    look_up = LABELS.open(settings, {}, "cpu")
    happy, other, nobody = (look_up(clip(person=person)) for person in ("M003", "W011", None))
    assert happy.labels == {"emotion": "happy", "level": "3"} and happy.scores == {"labelled": 1.0}
    assert other.labels == {"level": "1"} and other.scores == {"labelled": 0.5}
    assert not nobody.labels and nobody.scores == {"labelled": 0.0}
    [form] = LABELS.arrays
    for derived, codes in (
        (happy, [label_code("happy"), label_code("3")]),
        (other, [-1, label_code("1")]),
        (nobody, [-1, -1]),
    ):
        # One row for the whole clip, whatever its length.
        members = derived_members(LABELS, derived, 77, None, {"derive_key": "0"})
        stored = decode_column(form, members["labels.npy"])
        assert stored.dtype == np.int32 and stored.tolist() == [codes]
        about = json.loads(members["labels.json"])
        assert about == {"derive_key": "0", "labels": derived.labels, "names": ["emotion", "level"]}


@pytest.mark.parametrize("matched", MATCHED)
def test_every_fact_of_a_clip_can_be_matched(tmp_path: Path, matched: str) -> None:
    sample = clip(person="Ann, the 1st")
    fact = getattr(sample.info, matched)
    settings = LabelSettings(csv=table(tmp_path, f'{matched},mood\n"{fact}",calm\n"{fact}x",wild\n'))
    assert made(settings, sample).labels == {"mood": "calm"}


@pytest.mark.parametrize(
    "written",
    [
        "\ufeffperson,emotion\r\nM003,happy\r\n",  # Excel
        'person,emotion\n"M003","happy"\n',
        "person , emotion\n M003 ,  happy \n\n , \n",
        "person,emotion\nM003,happy",  # no line end
        "person,emotion\rM003,happy\r",  # an old Mac
        "person,emotion\nM003,happy\nM003,happy\n",  # twice the same
    ],
)
def test_tables_of_all_kinds_of_programs(tmp_path: Path, written: str) -> None:
    assert made(LabelSettings(csv=table(tmp_path, written)), clip(person="M003")).labels == {"emotion": "happy"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "the first column is headed '', must be key, clip_key,"),
        ("person;emotion\nM003;happy\n", "separated by semicolons: save it with commas"),
        ("person\temotion\nM003\thappy\n", "separated by tabs: save it with commas"),
        ("name,emotion\nM003,happy\n", "the first column is headed 'name', must be .* source or dataset"),
        ("person\nM003\n", "0 columns of labels"),
        ("person,emotion\n", "no line with labels"),
        ("person,emotion,emotion\nM003,a,b\n", "two columns have the same heading"),
        ("person,the emotion\nM003,a\n", "the label 'the emotion' must be 1 to 60 characters"),
        ("person,\nM003,a\n", "the label '' must be"),
        ("person,emotion\nM003,happy\nM003,sad\n", "line 3: person 'M003' has other labels in a line before"),
        ("person,emotion\nM003,happy\nM003,\n", "line 3: person 'M003' has other labels in a line before"),
        ("person,emotion\nM003,happy,3\n", "line 2: 3 values, the heading has 2: put texts with commas in quotes"),
        ("person,emotion\nM003\n", "line 2: 1 values"),
        ("person,emotion\n,happy\n", "line 2: the person is empty"),
        ('person,emotion\n"M003,happy\nW011,sad\n', "line 2: it is no CSV"),
        ('person,emotion\n"M003"x,happy\n', "line 2: it is no CSV"),
        ('person,emotion\nM003,"hap\npy"\n', "line 2: the label emotion must have 1 to 200 printable characters"),
        (f"person,emotion\nM003,{'x' * 201}\n", "line 2: the label emotion must have 1 to 200"),
        (f"person,emotion\nM003,{'x' * 200_000}\n", "line 2: it is no CSV"),
        ("person,emotion\nM003,happy\n".encode("utf-16"), "not UTF-8: save it as CSV with UTF-8"),
        ("person,emotion\nM003,fröhlich\n".encode("latin-1"), "not UTF-8"),
        ("person," + ",".join(f"l{k}" for k in range(65)) + "\n", "65 columns of labels, must have 1 to 64"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, written: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        LABELS.provenance(LabelSettings(csv=table(tmp_path, written)))
    assert "\n" not in str(caught.value) and "emotions.csv" in str(caught.value) and len(str(caught.value)) < 400


tables = st.text(max_size=200).map(lambda text: f"person,a\n{text}".encode("utf-8", "replace"))


@given(st.binary(max_size=200) | tables)
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        read = read_table(path)
    except ValueError as error:
        assert "any.csv" in str(error)
    else:
        assert read.rows and read.names


def test_places_that_hold_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none\.csv"):
        LABELS.provenance(LabelSettings(csv=str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="is a folder, not a file"):
        LABELS.provenance(LabelSettings(csv=str(tmp_path)))
    large = tmp_path / "large.csv"
    with large.open("wb") as stream:
        stream.truncate(labels.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="too large for a table of labels"):
        LABELS.provenance(LabelSettings(csv=str(large)))


def test_a_large_table_is_read_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"folder-clip_{k:06d},happy,{k % 3}\n" for k in range(100_000))
    path = Path(table(tmp_path, "key,emotion,level\n" + lines))
    assert len(read_table(path).rows) == 100_000
    assert len(set(map(id, read_table(path).rows.values()))) == 3, "equal labels are kept once"
    monkeypatch.setattr(labels, "MOST_ROWS", 99_999)
    with pytest.raises(ValueError, match="more than 99,999 lines"):
        read_table(path)


METADATA = {
    "emotion": {"sep_flag": False, "labels": "neutral"},
    "appearance": ["young", "wavy_hair"],
    "level": 3,
    "share": 0.5,
    "posed": True,
    "nothing": None,
    "blank": "",
}


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("emotion=emotion.labels", "neutral"),
        ("level", "3"),
        ("share", "0.5"),
        ("posed", "true"),
        ("appearance", '["young","wavy_hair"]'),
        ("young=appearance.young", "true"),
        ("old=appearance.old", "false"),
        ("emotion", '{"labels":"neutral","sep_flag":false}'),
        ("nothing", None),
        ("blank", None),
        ("absent", None),
        ("deep=level.deeper.still", None),
    ],
)
def test_values_of_the_metadata_become_texts(attribute: str, text: str | None) -> None:
    derived = made(LabelSettings(attributes=(attribute,)), clip(METADATA))
    name = attribute.partition("=")[0]
    assert derived.labels == ({} if text is None else {name: text})
    assert derived.arrays["labels"].tolist() == [[-1 if text is None else label_code(text)]]
    derived_members(LABELS, derived, 5, None, {})


@pytest.mark.parametrize(
    "value", ["x" * 201, ["y" * 300], "two\nlines", "\ud800", float("nan"), pytest.param(10**5000, id="huge")]
)
def test_metadata_that_is_no_label_fails_this_clip_alone(value: Any) -> None:
    sample = SimpleNamespace(info=SimpleNamespace(attributes={"emotion": value}))
    look_up: Any = LABELS.open(LabelSettings(attributes=("emotion",)), {}, "cpu")
    with pytest.raises(ColumnError, match="the label emotion") as caught:
        look_up(sample)
    assert caught.value.cause == "names" and len(str(caught.value)) < 400
    assert look_up(clip({"emotion": "happy"})).labels == {"emotion": "happy"}


def test_a_table_and_metadata_together(tmp_path: Path) -> None:
    path = table(tmp_path, "person,zeal,age\nM003,low,old\n")
    settings = LabelSettings(csv=path, attributes=("level", "mood=emotion.labels"))
    derived = made(settings, clip(METADATA, person="M003"))
    assert derived.labels == {"age": "old", "level": "3", "mood": "neutral", "zeal": "low"}
    assert derived.about["names"] == sorted(derived.labels), "the order of the codes"
    assert derived.arrays["labels"].tolist() == [[label_code(derived.labels[name]) for name in derived.about["names"]]]
    with pytest.raises(ValueError, match=r"the label age is in .*emotions.csv and in --labels.attributes"):
        LABELS.provenance(LabelSettings(csv=path, attributes=("age",)))
    with pytest.raises(ValueError, match="there are 65 labels"):
        LABELS.provenance(LabelSettings(csv=path, attributes=tuple(f"l{k}" for k in range(63))))


def test_settings_that_ask_for_nothing_or_twice() -> None:
    with pytest.raises(ValueError, match=r"give --labels.csv FILE, --labels.attributes NAME"):
        LABELS.provenance(LabelSettings())
    with pytest.raises(ValueError, match="names a label twice"):
        LabelSettings(attributes=("emotion", "emotion=mood"))
    with pytest.raises(ValueError, match="label 'the emotion' must be"):
        LabelSettings(attributes=("the emotion=emotion",))


def test_the_version_goes_by_the_content_of_the_table(tmp_path: Path) -> None:
    """Not by its place; other labels from the metadata are another version, too."""

    def version(settings: LabelSettings) -> str:
        return version_of(LABELS, settings, LABELS.provenance(settings), {}, {}).name

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    text = "person,emotion\nM003,happy\n"
    paths = table(one, text), table(two, text)
    same = {version(LabelSettings(csv=path)) for path in paths}
    level = ("level",)
    others = {version(LabelSettings(csv=paths[0], attributes=level)), version(LabelSettings(attributes=level))}
    table(two, text.replace("happy", "sad"))
    assert len(same) == 1 and len(same | others | {version(LabelSettings(csv=paths[1]))}) == 4


def test_a_worker_looks_up_in_the_table_that_it_hashed(tmp_path: Path) -> None:
    path = table(tmp_path, "person,emotion\nM003,happy\n")
    settings, sample = LabelSettings(csv=path), clip(person="M003")
    LABELS.provenance(settings)
    table(tmp_path, "person,emotion\nM003,sad\n")
    look_up = LABELS.open(settings, {}, "cpu")
    assert look_up(sample).labels == {"emotion": "happy"}
    assert made(settings, sample).labels == {"emotion": "sad"} and look_up(sample).labels == {"emotion": "happy"}
