"""make takes the values of its users as they are: nothing in them is run, expanded or split by make or a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.runtime.make_command import command
from tests.support.paths import ROOT

TARGETS = {
    "DATASET": "ingest",
    "SOURCE": "ingest",
    "METADATA": "ingest",
    "LIMIT": "ingest",
    "GROUP_BY": "ingest",
    "DATA": "verify",
    "WORKERS": "ingest",
    "ANN": "reannotate",
    "ENGINE": "reannotate",
    "CAUSE": "retry",
    "PERSON": "remove",
    "KEYS": "remove",
    "COLUMNS": "derive",
    "FITS": "basis",
    "RUN": "train-stage1",
    "RECIPE": "train-stage1",
    "STAGE1": "train-stage2",
    "VAE": "latents",
    "IMAGE_ENCODER": "latents",
    "WIDTH": "latents",
    "HEIGHT": "latents",
    "REFERENCE": "animate",
    "AUDIO": "animate",
    "OUT": "animate",
    "WEIGHTS": "animate",
    "ADAPTER": "animate",
    "NODES": "cluster-up",
    "JOB": "submit",
}
"""Variable → a target whose command takes it."""

VALUES = (
    "$(shell touch {marker})",
    "$(file >{marker},x)",
    "${{shell touch {marker}}}",
    "`touch {marker}`",
    "$$(touch {marker})",
    "; touch {marker} ;",
    "' ; touch {marker} ; '",
    '" ; touch {marker} ; "',
    "/x/a$b/$${{c}}/%d/#e\\f",
    "--help",
    "one\ntouch {marker}",
    "@x ü\x1b",
)


def environment(**more: str) -> dict[str, str]:
    """The environment without what a make that started the tests hands down."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "ARGS"} | more


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A program in the place of Python that shows its arguments, and the text of ARGS, as JSON."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ.get('ARGS')]))\n"
    )
    path.chmod(0o755)
    return path


def make(target: str, shown: Path, given: dict[str, str], *options: str, by_environment: bool = False) -> str:
    """Output of a target whose Python is `shown`, with values of the user on the command line or in the environment."""
    values = {} if by_environment else given
    return subprocess.run(
        ["make", "-o", ".venv/.up-to-date", *options, target, f"PY={shown}", *(f"{k}={v}" for k, v in values.items())],
        cwd=ROOT,
        env=environment(**(given if by_environment else {})),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("name", TARGETS)
def test_a_value_arrives_as_it_is(name: str, shown: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for number, text in enumerate(VALUES):
        value = text.format(marker=marker)
        out = make(TARGETS[name], shown, {name: value}, "-s", by_environment=number % 2 == 1)
        arguments, _ = json.loads(out.splitlines()[-1])
        # Joined to its option, so that a value with a dash in front is no option either; only a recipe has none.
        assert any(one == value if name == "RECIPE" else re.fullmatch(r"--[a-z0-9.-]+=" + re.escape(value), one)
                   for one in arguments), (value, arguments)  # fmt: skip
        assert not marker.exists(), value


@pytest.mark.parametrize("options", [("-s",), ("-n",)])
@pytest.mark.parametrize("name", [*TARGETS, "ARGS", "RAY_ADDRESS", "ANY_OTHER"])
def test_make_runs_nothing_in_a_value(name: str, options: tuple[str, ...], shown: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for text in ("$(shell touch {marker})", "$(file >{marker},x)", "$(eval x := $(shell touch {marker}))"):
        for by_environment in (False, True):
            value = {name: text.format(marker=marker)}
            make("ingest", shown, value, *options, by_environment=by_environment)
            make("help", shown, value, *options, by_environment=by_environment)
            assert not marker.exists(), (text, by_environment)


def test_further_options_reach_the_command_and_no_shell(shown: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    further = f"--filters 'a b' \"c $d\" $(touch {marker}) `touch {marker}` ; touch {marker} > {marker} \\$e *"
    arguments, args = json.loads(make("shards", shown, {"ARGS": further}, "-s").splitlines()[-1])
    assert arguments[:4] == ["-m", "talkinghead.runtime.make_command", "orchestration", "shards"]
    assert args == further
    (tmp_path / "show.py").write_text("import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('ARGS')]))")
    done = subprocess.run(
        [sys.executable, "-m", "talkinghead.runtime.make_command", "show", "--data=x y"],
        cwd=ROOT,
        env=environment(ARGS=further, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    split = ["--filters", "a b", "c $d", "$(touch", f"{marker})", "`touch", f"{marker}`", ";", "touch", str(marker)]
    assert json.loads(done.stdout) == [["--data=x y", *split, ">", str(marker), "$e", "*"], None]
    assert not marker.exists()


def test_every_variable_is_tested_and_every_command_takes_further_options() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(r"^USER_VALUES := (.*)$", text, re.M)
    assert listed and set(listed[1].split()) == {*TARGETS, "ARGS"}
    direct = [line for line in text.splitlines() if line.startswith("\t$(PY) -m")]
    assert all("pip install" in line or "native" in line for line in direct), direct


def test_quotes_that_are_not_balanced_are_one_line() -> None:
    assert command(["orchestration", "report"], "--a 'b c'") == [
        sys.executable, "-m", "orchestration", "report", "--a", "b c",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "talkinghead.runtime.make_command", "show"],
        cwd=ROOT,
        env=environment(ARGS="--a 'b"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: ARGS={chr(34)}--a 'b{chr(34)} cannot be split into options: no closing quotation\n"


def test_a_line_for_copying_comes_through_shell_and_make(shown: Path, tmp_path: Path) -> None:
    """The report prints such a line for each cause of a quarantine."""
    from orchestration.report.view import retry_line

    marker = tmp_path / "marker"
    data, cause = f"/x/a$b '\"$(shell touch {marker})", f"a`touch {marker}`$(touch {marker})"
    line = retry_line(data, cause).replace(
        "make retry", f"make -s -o .venv/.up-to-date PY={shlex.quote(str(shown))} retry"
    )
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0][-2:] == [f"--data={data}", f"--cause={cause}"]
    assert not marker.exists()
