"""When a command that came to its end counts as failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units.executor import RetrySettings, Tally
from orchestration.units.unit import Unit
from orchestration.verdict import CountedRunner, verdict
from talkinghead.files.storage import Storage
from talkinghead.runtime.command_line import Incomplete


def runner_of(tmp_path: Path, **tallies: Tally) -> CountedRunner:
    cluster = Cluster(ClusterSettings(workers=2))
    retry = RetrySettings(attempts=1)
    return CountedRunner(storage=Storage(tmp_path / "data"), cluster=cluster, retry=retry, tallies=tallies)


@pytest.mark.parametrize(
    ("planned", "before", "now", "fails"),
    [
        (10, 0, 4, False),  # few
        (10, 0, 5, True),
        (10, 5, 0, True),  # the same command once more
        (10, 3, 2, True),
        (500, 0, 5, False),  # one in a hundred
        (499, 0, 5, True),
        (0, 0, 0, False),
    ],
)
def test_more_than_a_share_and_more_than_a_few(
    tmp_path: Path, planned: int, before: int, now: int, fails: bool
) -> None:
    tally = Tally(planned=planned, quarantined_before=before, quarantined=now)
    found = verdict(runner_of(tmp_path, fine=Tally(planned=9), ingest=tally), "result")
    assert isinstance(found, Incomplete) == fails
    if isinstance(found, Incomplete):
        assert found.result == "result"
        assert found.error.startswith(
            f"{before + now} of {planned} units of ingest are in quarantine: make quarantine "
        )
        assert "\n" not in found.error and "fine" not in found.error


def test_not_one_sample_is_a_failure(tmp_path: Path) -> None:
    runner = runner_of(tmp_path, ingest=Tally(planned=3, committed=3))
    assert verdict(runner, "result", 1) == verdict(runner, "result") == "result"
    found = verdict(runner, "result", 0)
    assert isinstance(found, Incomplete) and found.error.startswith("not one sample came out: make report ")


def test_the_runner_counts_what_it_has_run(tmp_path: Path) -> None:
    units = [
        Unit(
            job="test",
            key=f"unit{number}",
            pkey="0123456789abcdef",
            function="tests.support.poison:behave",
            payload={"behaviour": "error", "runs": str(tmp_path / "runs")},
            source=f"{number}.mp4",
            time_limit_s=240.0,
        )
        for number in range(6)
    ]
    runner = runner_of(tmp_path)
    with runner.cluster:
        runner.run("test", units)
        assert isinstance(verdict(runner, "result"), Incomplete)
    assert runner.tallies["test"].quarantined == 6
