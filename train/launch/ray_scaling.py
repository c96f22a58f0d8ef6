"""Numbers of workers that Ray Train may train with: those that can share a step, and no others.

Ray's own elastic policy takes any number between the smallest and the largest one. Ours takes the largest fitting one
that can be had: of 8, with workers for 6 and a step of 16 microbatches, it goes on with 4. What it overrides is
internal to Ray; `tests/train/launch/test_ray_scaling.py` notices when a release changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class FittingWorkers(ElasticScalingPolicy):
    """Elastic policy over chosen numbers of workers.

    Args:
        scaling_config: Ray's settings, from the smallest to the largest of the numbers.
        numbers: Numbers of workers that fit.
    """

    def __init__(self, scaling_config: ScalingConfig, numbers: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self.numbers = tuple(sorted(numbers))

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Largest fitting number of workers for which there is room; 0 for none, which Ray takes as too few."""
        possible = super()._count_possible_workers(reserved_resources)
        return max((number for number in self.numbers if number <= possible), default=0)
