"""`python -m train` with rules for clips: what it reads and notes, and how it goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from shards.pins import read_pins
from shards.removal_records import Pending, write_pending
from talkinghead.files.storage import Storage
from tests.support.derived_data import TOY, ToySettings, add_version, toy
from tests.support.speech_data import build_speech_data, clip_key, store_fits
from tests.support.train_commands import Command, run_train

_SMALL = """audio2mesh tiny --config.window-frames 12 --config.hidden 8 --config.smoothing 1 --train.steps 1
 --train.validation.every 0 --train.parallel.threads 1 --train.log.no-tensorboard"""
SMALL = _SMALL.split()


def test_a_run_with_rules_notes_what_it_reads_and_goes_on_with_it(tmp_path: Path) -> None:
    data, run = build_speech_data(tmp_path / "data"), tmp_path / "run"
    scores = {clip_key(0): 1.0, clip_key(1): 5.0, clip_key(2): 7.0}
    version = add_version(
        data, TOY, lambda row, valid: dataclasses.replace(toy(row, valid), scores={"toy_score": scores.get(row.key)})
    )

    def train(name: str, *options: object) -> Command:
        return run_train(tmp_path / name, *SMALL, "--data", data.uri, "--run", run, *options)

    # The log says what each rule left out; the run says what it has joined, and so does DATA.
    rules = ("--config.at_least", "toy_score=3", "--config.person", "speaker-0", "speaker-1")
    done = train("a", *rules)
    assert done.process.exitcode == 0, done.stderr
    assert "samples are left out: toy_score below 3, or not measured" in done.stderr
    assert "make basis DATA=" in (run / "logs" / "rank-0.log").read_text()
    statistics = json.loads((run / "task" / "statistics.json").read_text())
    assert statistics["joined"] == [{"version": version.version, "index": version.index}]
    assert (statistics["num_clips"], statistics["fits"]) == (2, {})
    (pin,) = read_pins(data)
    assert pin.run == str(run) and pin.versions == tuple(sorted(("v1", version.version))) and not pin.fits

    # A newer version is not read, and the note is written again.
    add_version(data, TOY, toy, settings=ToySettings(number=1))
    (data.local_root / pin.path).unlink()  # type: ignore[operator]
    done = train("b", *rules)
    assert done.process.exitcode == 0, done.stderr
    assert read_pins(data) == [pin]
    refused = train("c", "--config.at_least", "toy_score=4", *rules[2:])
    assert refused.process.exitcode == 2 and len(refused.errors) == 1
    assert 'config.at_least: ["toy_score=3"] -> ["toy_score=4"]' in refused.errors[0]


def test_a_run_of_an_older_release_goes_on(tmp_path: Path) -> None:
    """Its settings say `persons`, and know nothing of rules; nor does what it has derived."""
    data, run = build_speech_data(tmp_path / "data"), tmp_path / "run"
    entries = store_fits(data)
    words = [*SMALL, "--data", data.uri, "--run", run]
    done = run_train(tmp_path / "a", *words)
    assert done.process.exitcode == 0, done.stderr
    assert read_pins(data)[0].fits == tuple(sorted(entry.sha256 for entry in entries))
    known, derived = run / "config.json", run / "task" / "statistics.json"
    saved, statistics = json.loads(known.read_text()), json.loads(derived.read_text())
    config = saved["recipe"]["config"]
    for name in ("join", "at_least", "at_most", "licence", "split_group", "label"):
        del config[name]
    config["persons"] = config.pop("person")
    for name in ("joined", "fits"):
        del statistics[name]
    known.write_text(json.dumps(saved))
    derived.write_text(json.dumps(statistics))
    done = run_train(tmp_path / "b", *words)
    assert done.process.exitcode == 0, done.stderr
    assert "started anew" not in done.stderr
    assert json.loads(known.read_text())["recipe"]["config"]["person"] == []
    assert Storage(data.uri).exists(read_pins(data)[0].path) and not read_pins(data)[0].fits


def test_nothing_is_trained_while_samples_are_removed(tmp_path: Path) -> None:
    """The removal was killed before readers see it: a training that begins now would learn from what goes."""
    data, run = build_speech_data(tmp_path / "data"), tmp_path / "run"
    write_pending(data, Pending(job="remove", path="removed/20260101T000000Z-00000000.json", samples=[clip_key(0)]))
    refused = run_train(tmp_path / "a", *SMALL, "--data", data.uri, "--run", run)
    assert refused.process.exitcode == 2 and len(refused.errors) == 1
    assert "make gc DATA=" in refused.errors[0] and not read_pins(data)
    write_pending(data, Pending(job="gc"))
    done = run_train(tmp_path / "b", *SMALL, "--data", data.uri, "--run", run)
    assert done.process.exitcode == 0, done.stderr
