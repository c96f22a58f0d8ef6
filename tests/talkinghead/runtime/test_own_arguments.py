"""Credentials in a command line are gone from what other users can read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

URI = "s3://AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG@bucket/data"


@pytest.mark.parametrize("option", ["{}", "--data={}"])
def test_other_users_no_longer_read_them(option: str) -> None:
    code = """
import sys
from pathlib import Path
from talkinghead.runtime.own_arguments import blank_credentials
blank_credentials()
sys.stdout.buffer.write(Path("/proc/self/cmdline").read_bytes())
print(*sys.argv[1:], sep="\\n")
"""
    given = ["before", option.format(URI), "--region=ü", "s3://bucket/data", "last"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, kept = done.stdout.split("\0")
    hidden = option.format("s3://" + "*" * (len(URI) - len("s3://")))
    assert shown[1:] == ["-c", code, "before", hidden, "--region=ü", "s3://bucket/data", "last"]
    assert kept.splitlines() == given, "Python's own copy stays"
