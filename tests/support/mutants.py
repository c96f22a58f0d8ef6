"""Changes the code in small ways, one at a time, and tells which changes no test notices (mutation testing).

    .venv/bin/python -m tests.support.mutants            all parts below: hours
    .venv/bin/python -m tests.support.mutants order      one of them: minutes

Works on a copy of the tracked files. A change that survives is either a missing test or one that means the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.paths import ROOT

PARTS = {
    "order": ("shards/order.py", "tests/shards/test_order.py"),
    "splits": ("shards/plan.py", "tests/shards/test_plan.py"),
    "ledger": ("orchestration/units/ledger.py", "tests/orchestration/units/test_ledger.py"),
    "cuts": ("ingest/shots.py", "tests/ingest/test_shots.py"),
    "frame-clock": ("talkinghead/media/frame_clock.py", "tests/talkinghead/media/test_frame_clock.py"),
    "stream-clock": ("talkinghead/media/stream_clock.py", "tests/talkinghead/media/test_timeline.py"),
    "timeline": ("talkinghead/media/timeline.py", "tests/talkinghead/media/test_timeline.py"),
    "audio": ("talkinghead/media/audio.py", "tests/talkinghead/media/test_audio.py"),
    "mono": ("talkinghead/media/mono.py", "tests/talkinghead/media/test_mono.py"),
    "sound-runs": ("talkinghead/media/sound_runs.py", "tests/talkinghead/media/test_sound_runs.py"),
}
"""Name → the file that is changed, and the tests that should notice."""

# One change of each kind: each number, comparison, sign and condition once. `|` stands in annotations only; a `*` that
# begins the arguments by name is changed too, and such a change means nothing.
_OPERATORS = [
    "core/ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|In_NotIn|NotIn_In)",
    "core/ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul)",
    "core/ReplaceUnaryOperator_(USub_UAdd|Delete_Not)",
    "core/(AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd)",
    "core/(ReplaceBreakWithContinue|ReplaceContinueWithBreak|NumberReplacer|ZeroIterationForLoop)",
]


def run_part(name: str) -> None:
    """Print the changes of one part that survive its tests, and how many there were."""
    module, tests = PARTS[name]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "talkinghead"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in filter(None, listed.split("\0")):
            if (ROOT / file).is_file():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, copy / file)
        if (ROOT.parent / "shared").exists():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        config = Path(folder) / "cosmic-ray.toml"
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -W ignore {tests}"
        keep = "|".join(f"(?:{operator})" for operator in _OPERATORS)
        config.write_text(
            f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = 120.0\nexcluded-modules = []\n'
            f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
            f"[cosmic-ray.filters.operators-filter]\nexclude-operators = ['^(?!(?:{keep})$).*']\n"
        )
        tools = Path(sys.executable).parent
        session = Path(folder) / "session.sqlite"
        for step in (
            [tools / "cosmic-ray", "baseline", config],
            [tools / "cosmic-ray", "init", config, session],
            [tools / "cr-filter-operators", session, config],
            [tools / "cosmic-ray", "exec", config, session],
        ):
            subprocess.run(list(map(str, step)), cwd=copy, check=True)
        dump = [str(tools / "cosmic-ray"), "dump", str(session)]
        lines = subprocess.run(dump, cwd=copy, check=True, capture_output=True, text=True).stdout.splitlines()
        _report(name, [json.loads(line) for line in lines])


def _report(name: str, results: list[list[dict]]) -> None:
    outcomes: Counter[str] = Counter()
    for item, result in results:
        if not result or result.get("worker_outcome") == "skipped":
            continue
        outcome = str(result["test_outcome"])
        outcomes[outcome] += 1
        if outcome == "survived":
            change = item["mutations"][0]
            print(f"{change['module_path']}:{change['start_pos'][0]} {change['operator_name']}")
            lines = [line for line in result["diff"].splitlines() if line[:1] in "+-"]
            print("\n".join(f"    {line}" for line in lines if line[:3] not in ("---", "+++")))
    print(f"{name}: {sum(outcomes.values())} changes, {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:] or list(PARTS)
    if not set(asked) <= set(PARTS):
        sys.exit(f"{__doc__}\nparts: {', '.join(PARTS)}")
    for part in asked:
        run_part(part)
