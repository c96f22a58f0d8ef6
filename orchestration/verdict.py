"""The verdict on a command that came to its end: whether so many of its inputs failed that it must not pass for done.

A script that looks at the exit status alone goes on after 0. So a command ends with 1, and says so, where more than
`SHARE` of a job's units, and at least `LEAST`, are in quarantine, or where not a single sample came out. Its result is
there all the same, and a few damaged videos among many are no failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.unit import Unit
from talkinghead.runtime.command_line import Incomplete

SHARE = 0.01
"""Share of a job's units that may be in quarantine."""
LEAST = 5
"""Units in quarantine below which no share counts: one damaged file in a folder of ten is no failure."""


@dataclass(frozen=True, kw_only=True)
class CountedRunner(UnitRunner):
    """Runner that remembers how the units of each job ended."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    """Job → counts of its last pass."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run the pending units, as `UnitRunner` does, and remember the counts."""
        self.tallies[job] = super().run(job, units, gpu_share=gpu_share)
        return self.tallies[job]


def verdict(runner: CountedRunner, result: str, samples: int | None = None) -> str | Incomplete:
    """Result of a command, with what is wrong with it, if anything.

    Args:
        runner: Runner of all its jobs, which have ended.
        result: The result.
        samples: Number of samples in it; None: they are not counted yet.
    """
    data = runner.storage.uri
    wrong = []
    for job, tally in runner.tallies.items():
        # Those of an earlier command count too: the same command once more must not turn a failure into a success.
        failed = tally.quarantined_before + tally.quarantined
        if failed >= LEAST and failed > SHARE * tally.planned:
            wrong.append(f"{failed} of {tally.planned} units of {job}")
    if wrong:
        return Incomplete(
            result,
            f"{', '.join(wrong)} are in quarantine: make quarantine DATA={data} says why; mend the cause, then make"
            f" retry DATA={data} and the same command again",
        )
    if samples == 0:
        return Incomplete(result, f"not one sample came out: make report DATA={data} says why each input was left out")
    return result
