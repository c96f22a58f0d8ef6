"""Charts lose no value, survive any values, and escape text."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate.filters import FilterSettings
from orchestration.report.charts import Histogram, Threshold, histogram_svg, sparkline_svg, waveform_svg
from orchestration.report.distributions import DISTRIBUTIONS, charts
from tests.support.report_data import Clip, Piece
from tests.support.report_state import make_state

numbers = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60)


@given(numbers, numbers, st.lists(st.floats(-1e3, 1e3), max_size=2))
@settings(max_examples=150, deadline=None)
def test_every_finite_value_is_in_a_bar(kept: list[float], rejected: list[float], limits: list[float]) -> None:
    thresholds = [Threshold(value=value, label="least") for value in limits]
    histogram = Histogram.of(kept, rejected, thresholds)
    assert histogram.kept.sum() == np.isfinite(kept).sum()
    assert histogram.rejected.sum() == np.isfinite(rejected).sum()
    assert (np.diff(histogram.edges) > 0).all()
    if histogram.kept.sum() + histogram.rejected.sum():
        assert all(histogram.edges[0] <= value <= histogram.edges[-1] for value in limits)
    ElementTree.fromstring(histogram_svg("title", histogram, thresholds, "px"))


def test_values_of_both_sides_of_a_threshold_stand_on_both_sides_of_its_line() -> None:
    histogram = Histogram.of([60.0] * 9, [10.0] * 3, [Threshold(value=50.0, label="least")])
    below = histogram.edges[1:] <= 50
    assert histogram.rejected[below].sum() == 3
    assert histogram.kept[below].sum() == 0


def test_a_missing_face_is_a_gap() -> None:
    values = np.array([0.1, 0.2, np.nan, np.nan, 0.3, 0.1])
    assert str(sparkline_svg(values, 0, 1, "mouth")).count("<polyline") == 2
    assert str(sparkline_svg(np.full(5, np.nan), 0, 1, "mouth")).count("<polyline") == 0


@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_tracks_of_any_length_are_valid_and_short(count: int) -> None:
    for svg in (
        sparkline_svg(np.zeros(count), -1, 1, "<&\"'>", zero=True),
        waveform_svg(np.zeros(min(count, 240)), "<&"),
    ):
        ElementTree.fromstring(svg)
        assert len(svg) < 8000


def test_histograms_show_the_limits_that_are_on() -> None:
    scores = {item.score: 10.0 for item in DISTRIBUTIONS if item.score}
    clips = [Clip(key="a", pieces=(Piece(key="a", scores=scores),))]
    index = make_state(clips).index
    limits = {chart.title: chart.limits for chart in charts(index, FilterSettings(min_sharpness=None))}
    assert limits["Sharpness"] == 0
    assert (limits["Clip length"], limits["Brightness"]) == (1, 2)
    assert [chart.title for chart in charts(make_state([Clip(key="a")]).index)] == ["Clip length"]
    assert charts([]) == []
