"""What a stranger's names and texts could do to a terminal is shown, not done."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.runtime.errors import error_text, one_line, printable
from talkinghead.runtime.printable_stream import PrintableStream, underlying
from tests.support.paths import ROOT
from tests.support.terminals import everything_written

NASTY = "a\x1b[2Jb\x9b31m\x07\u202egnp.exe\r\x7f"
SHOWN = r"a\x1b[2Jb\x9b31m\x07\u202egnp.exe\r\x7f"


def test_texts_become_printable() -> None:
    assert printable(NASTY) == SHOWN
    assert (
        printable("zwei Zeilen\n\tÜ 日本 \N{ZERO WIDTH JOINER} 😀") == "zwei Zeilen\n\tÜ 日本 \N{ZERO WIDTH JOINER} 😀"
    )
    assert one_line(f"{NASTY}\nerror: \t\u2028x") == SHOWN + r"\nerror: \t\u2028x"
    assert error_text(FileNotFoundError(2, "No such file", "a\nb\x1b")) == r"a\nb\x1b: No such file"


def test_a_stream_passes_on_what_is_printable() -> None:
    inner = io.StringIO()
    stream = PrintableStream(inner)
    assert print(NASTY, "ok", file=stream) is None
    assert inner.getvalue() == f"{SHOWN} ok\n"
    assert underlying(stream) is underlying(inner) is inner is PrintableStream(stream).stream
    assert not stream.isatty() and stream.writable()


COMMAND = """
import logging, sys
from talkinghead.runtime.command_line import Incomplete, run_command_line

def command() -> Incomplete:
    'Does nothing.'
    logging.getLogger('talkinghead').warning('log %s', sys.argv[1])
    print('print', sys.argv[1], file=sys.stderr)
    if sys.argv[1] == 'raise': raise ValueError('raised \\x1b[2J')
    return Incomplete('result ' + sys.argv[1], 'problem ' + sys.argv[1])

sys.exit(run_command_line(command, [], prog='it'))
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_every_line_of_a_main_is_printable(terminal: bool, tmp_path: Path) -> None:
    (tmp_path / "main_of_mine.py").write_text(COMMAND)
    leader, follower = pty.openpty() if terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "main_of_mine", NASTY],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    os.close(follower)
    result = everything_written(leader).replace("\r\n", "\n")
    assert done.stderr == f"log {SHOWN}\nprint {SHOWN}\nerror: problem {SHOWN}\n"
    # A program that reads the result gets the name as it is.
    assert result == f"result {SHOWN if terminal else NASTY}\n"


def test_the_error_line_is_printable(tmp_path: Path) -> None:
    (tmp_path / "main_of_mine.py").write_text(COMMAND)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "main_of_mine", "raise"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == r"error: raised \x1b[2J" and done.returncode == 2


def test_names_in_logs_of_other_levels_are_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    """The records themselves, which other handlers write to files, are not changed."""
    with caplog.at_level(logging.WARNING):
        logging.getLogger("talkinghead").warning("log %s", NASTY)
    assert caplog.messages == [f"log {NASTY}"]
