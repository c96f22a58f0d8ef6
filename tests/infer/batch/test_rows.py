"""Rows of a batch: tables with every kind of value, two folders by name and all pairs, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from infer.batch.rows import REQUESTS, BatchRequest, Row, read_rows


def rows_of(tmp_path: Path, text: str, *common: str) -> list[Row]:
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    return read_rows(BatchRequest(table=table, set=common))


def test_a_table_gives_requests_of_all_commands(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "\ufeffreference,audio,driving,video,mouth,output,--limit-seconds,paste_back,adapter,command\n"
        'a.png,"b, c.wav",,,,1.mp4,2.5,true,,\n'
        "a.png,,d.mp4,,,2.mp4,,no,x;y,\n"
        ",b.wav,,d.mp4,,3.mp4,,,,\n"
        "a.png,,,,video:d.mp4,4.mp4,,,,\n"
        "\n"
        "a.png,b.wav,,,,5.mp4,,,,landmarks\n",
        "weights=w",
        "steps=7",
    )
    assert [row.command for row in rows] == ["audio", "video", "dub", "animate", "landmarks"]
    audio, video, dub, animate = (row.request() for row in rows[:4])
    assert (audio.audio, audio.limit_seconds, audio.paste_back, audio.steps) == (Path("b, c.wav"), 2.5, True, 7)
    assert (video.driving, video.paste_back, video.adapter) == (Path("d.mp4"), False, (Path("x"), Path("y")))
    assert (dub.video, dub.audio, dub.weights) == (Path("d.mp4"), Path("b.wav"), Path("w"))
    assert animate.mouth == "video:d.mp4"
    # Drawn landmarks take no sampling steps: the row says so, when it is tried.
    with pytest.raises(ValueError, match="infer landmarks has no option steps"):
        rows[4].request()


@pytest.mark.parametrize("command", sorted(REQUESTS))
def test_every_option_of_every_command_can_stand_in_a_table(command: str) -> None:
    """What its default, written as text, gives is the default."""
    request: Any = REQUESTS[command]
    needed = {"reference": "a.png", "audio": "b.wav", "driving": "c.mp4", "video": "c.mp4", "weights": "w"}
    names = [field.name for field in dataclasses.fields(request)]
    given = {name: text for name, text in needed.items() if name in names} | {"output": "o.mp4", "command": command}
    plain = Row(number=1, options=given).request()
    written = {}
    for name in names:
        value = getattr(plain, name)
        if value is not None and value != ():
            written[name] = str(value)
    assert Row(number=1, options={**written, "command": command}).request() == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "many"}, "steps is 'many', must be a whole number"),
        ({"guidance": "inf"}, "guidance is 'inf', must be a finite number"),
        ({"crop": "body"}, "crop is 'body', must be one of face, none"),
        ({"paste_back": "maybe"}, "paste_back is 'maybe', must be true or false"),
        ({"driving": "x.mp4", "command": "audio"}, "infer audio has no option driving"),
        ({"command": "paint"}, "command is 'paint', must be one of audio, video, landmarks, animate, dub"),
    ],
)
def test_a_wrong_cell_costs_its_row(options: dict[str, str], message: str) -> None:
    given = {"reference": "a.png", "audio": "b.wav", "output": "o.mp4", "weights": "w"}
    with pytest.raises(ValueError, match=message):
        Row(number=1, options=given | options).request()
    with pytest.raises(ValueError, match="infer audio needs audio"):
        Row(number=1, options={"reference": "a.png", "output": "o.mp4", "weights": "w"}).request()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("reference,audio,output\n", "has no rows"),
        ("reference,sound,output\na,b,c.mp4\n", "no command has the option 'sound'"),
        ("reference,reference\na,b\n", "has the column 'reference' twice"),
        ("reference,audio,output\na,b\n", "line 2 of the table .* has 2 cells, its first line 3"),
        ('reference,audio\na,"b\n', "is no CSV"),
        ("reference,audio,output\na,b,c.mp4\nd,e,./c.mp4\n", "the rows 1 and 2 both write"),
        ("reference,driving,output\na,b.mp4,c.mp4\na,./c.mp4,d.mp4\n", "row 1 would replace .*, which row 2 reads"),
    ],
)
def test_a_wrong_table_is_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, text)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    for name in ("faces/ann.png", "faces/bob.JPG", "faces/notes.txt", "talks/ann.wav", "talks/cid.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return {"portraits": tmp_path / "faces", "speeches": tmp_path / "talks", "output": tmp_path / "out"}


def test_two_folders(folders: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    [row] = read_rows(BatchRequest(**folders, set=("weights=w",)))
    request = row.request()
    assert (request.reference.name, request.audio.name, request.output.name) == ("ann.png", "ann.wav", "ann.mp4")
    assert "2 files have no file of the same name in the other folder, and are left out: bob, cid" in caplog.text
    every = read_rows(BatchRequest(**folders, pairs="all", set=("weights=w",)))
    names = [Path(row.options["output"]).stem for row in every]
    assert names == ["ann__ann", "ann__cid", "bob__ann", "bob__cid"]
    (folders["portraits"] / "ann.webp").touch()
    with pytest.raises(ValueError, match="have one name"):
        read_rows(BatchRequest(**folders))


def test_what_is_given_must_fit(folders: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    for request, message in (
        (BatchRequest(), "give --table"),
        (BatchRequest(table=table, **folders), "give --table"),
        (BatchRequest(portraits=tmp_path), "all of --portraits, --speeches and --output"),
        (BatchRequest(table=table), "the results would replace the table"),
        (BatchRequest(table=tmp_path / "t.csv", set=("steps",)), "--set takes NAME=VALUE"),
    ):
        with pytest.raises(ValueError, match=message):
            request.check()
