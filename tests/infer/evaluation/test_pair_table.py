"""The table of pairs: means over seeds and clips, noise floors, verdicts, and clips that failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from infer.evaluation.bootstrap import Interval
from infer.evaluation.clip_scores import MetricKind, Scores, metric_kinds
from infer.evaluation.pair_table import ClipFacts, PairTable, SubjectScores, verdict_of
from infer.evaluation.subjects import COPIED, REENCODED, REENCODED_REFERENCE, TRUTH
from infer.metrics import METRICS

KINDS = metric_kinds()
SSIM, PSNR = KINDS["ssim"], KINDS["psnr"]
CLIPS = tuple(ClipFacts(key=f"clip{number}", group=f"person{number}", measured=10) for number in range(6))


def subject(name: str, values: Mapping[str, Sequence[Sequence[float | None]]], **more: Any) -> SubjectScores:
    """Scores of metrics as rows of clips, columns of seeds; a clip with an empty row was not measured."""
    rows = len(next(iter(values.values())))
    clips = {}
    for row in range(rows):
        seeds = range(max(len(values[metric][row]) for metric in values))
        clips[f"clip{row}"] = {
            seed: Scores(
                values={metric: cells[row][seed] for metric, cells in values.items()},
                reasons={metric: "it does not move" for metric, cells in values.items() if cells[row][seed] is None},
            )
            for seed in seeds
        }
    clips = {key: seeds for key, seeds in clips.items() if seeds}
    options: dict[str, Any] = {"role": "pair", "failures": {}} | more
    return SubjectScores(name=name, clips=clips, **options)


def table(*subjects: SubjectScores) -> PairTable:
    return PairTable(
        title="clips", protocol="p.", notes=(), metrics=(SSIM, PSNR), clips=CLIPS, subjects=subjects, record={},
        resamples=200,
    )  # fmt: skip


def test_seeds_are_averaged_within_a_clip_first() -> None:
    """A clip with three seeds counts as much as one with one."""
    found = table(subject("a", {"ssim": [[0.2, 0.4, 0.6], [1.0]]})).cell("a", "ssim")
    assert found is not None and found.mean == pytest.approx(0.7) and found.clips == 2


def test_the_floor_is_what_re_encoding_moves_and_of_psnr_that_of_the_copied_reference() -> None:
    rows = 6
    found = table(
        subject(TRUTH, {"ssim": [[1.0]] * rows, "psnr": [[None]] * rows}, role="truth"),
        subject(REENCODED, {"ssim": [[0.98]] * 3 + [[1.02]] * 3, "psnr": [[40.0]] * rows}, role="baseline"),
        subject(COPIED, {"ssim": [[0.5]] * rows, "psnr": [[20.0]] * rows}, role="baseline"),
        subject(REENCODED_REFERENCE, {"ssim": [[0.5]] * rows, "psnr": [[20.3]] * rows}, role="probe"),
    )
    # Differences of both signs do not cancel.
    assert found.floor("ssim") == pytest.approx(0.02) and found.floor("psnr") == pytest.approx(0.3)
    assert REENCODED_REFERENCE not in found.text() and found.cell(TRUTH, "psnr") is None


def test_without_the_truth_there_is_no_floor() -> None:
    assert table(subject("a", {"ssim": [[0.5]]})).floor("ssim") is None


def interval(mean: float, low: float | None, high: float | None) -> Interval:
    return Interval(mean=mean, low=low, high=high, clips=6, groups=6)


@pytest.mark.parametrize(
    ("kind", "found", "floor", "verdict"),
    [
        (SSIM, interval(0.01, 0.009, 0.011), 0.02, "within the noise"),
        (SSIM, interval(0.03, -0.01, 0.07), 0.02, "not told apart"),
        (SSIM, Interval(mean=0.03, low=0.02, high=0.04, clips=9, groups=4), 0.02, "too few to tell"),
        (SSIM, Interval(mean=0.03, low=None, high=None, clips=9, groups=1), 0.02, "too few to tell"),
        (SSIM, interval(0.03, 0.02, 0.04), 0.02, "better"),
        (SSIM, interval(-0.03, -0.04, -0.02), None, "worse"),
        (KINDS["lip_error"], interval(-0.03, -0.04, -0.02), 0.0, "better"),
        (KINDS["sharpness"], interval(0.03, 0.02, 0.04), 0.0, "differs"),
    ],
)
def test_verdicts(kind: MetricKind, found: Interval, floor: float | None, verdict: str) -> None:
    assert verdict_of(kind, found, floor) == verdict


def test_a_clip_that_failed_costs_its_numbers_and_is_named() -> None:
    found = table(
        subject("good", {"ssim": [[0.5]] * 6}),
        subject("bad", {"ssim": [[], *[[0.4]] * 5]}, failures={"clip0": "no weights"}, against=("good",)),
    )
    cells = found.cell("good", "ssim"), found.cell("bad", "ssim")
    assert [cell and cell.clips for cell in cells] == [6, 5] and found.num_failures == 1
    assert "FAILED: bad, clip0: no weights" in found.text() and "5 clips" in found.text()
    assert "-0.100 [-0.100, -0.100]  5 clips  " in found.text()
    (difference,) = found.differences()
    assert difference.interval.clips == 5 and difference.interval.mean == pytest.approx(-0.1)
    # The counts add up: every clip of every subject is measured or failed.
    for entry in found.subjects:
        assert len(entry.clips) + len(entry.failures) == len(CLIPS)


def test_why_a_number_is_over_fewer_clips_is_told() -> None:
    found = table(subject("a", {"ssim": [[0.5]] * 4 + [[None]] * 2})).text()
    assert "4 clips  (it does not move)" in found
    assert "6 clips\n" in table(subject("a", {"ssim": [[0.5]] * 6})).text()


def test_json_holds_every_number_and_no_value_is_null() -> None:
    found = json.loads(json.dumps(table(subject("a", {"ssim": [[0.25, None], [1.0]]})).to_json(), allow_nan=False))
    (entry,) = found["subjects"]
    assert entry["clips"]["clip0"] == {"0": {"ssim": 0.25}, "1": {"ssim": None}}
    assert entry["reasons"] == {"ssim": "it does not move"} and entry["means"]["psnr"] is None


def test_few_people_are_told() -> None:
    few = table(subject("a", {"ssim": [[0.5]]}))
    assert few.few is None
    alone = PairTable(
        title="", protocol="", notes=(), metrics=(SSIM,), clips=CLIPS[:1], subjects=few.subjects, record={}
    )
    assert alone.few is not None and "1 person" in alone.few and alone.few in alone.text()


def test_every_metric_has_a_scope() -> None:
    assert KINDS.keys() == METRICS.keys()
    assert {KINDS[name].scope for name in ("lip_error", "pose_l1", "psnr", "mouth_psnr", "mouth_read_correlation")} == {
        "face motion", "head motion", "images", "shown face",
    }  # fmt: skip
    assert metric_kinds(("identity", "fid")).keys() - KINDS.keys() == {"identity_similarity"}
