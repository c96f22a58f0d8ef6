"""Jobs that are sent to a cluster: the Make targets, run by Ray Jobs on its head, followed from here.

    JOB="reannotate ANN=v3 DATA=s3://bucket/data"
     │  make itself says what the target runs
     ▼
    python -m orchestration reannotate --data=s3://bucket/data --version=v3
     │  goes to the cluster with our packages and nothing else of this folder
     ▼
    its log comes back line by line, then its exit status

The job belongs to the cluster from then on: it goes on when whoever follows it leaves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestration.cluster import MODEL_VARIABLES
from talkinghead.files.uri import hide_known_secrets, refuse_credentials
from talkinghead.runtime.command_line import Ending
from talkinghead.runtime.errors import MachineError
from talkinghead.runtime.own_cluster import find_own_cluster
from talkinghead.runtime.ray_cluster import ROOT, check_answers, use_token, worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger(__name__)

JOBS = (
    "ingest", "annotate", "shards", "verify", "report", "reannotate", "quarantine", "retry", "remove", "gc", "download",
    "derive", "latents", "basis", "train-audio2mesh", "train-audio2pose", "train-stage1", "train-stage2", "animate",
)  # fmt: skip
"""Make targets that are jobs; the others work on this machine or this checkout."""
PLACES = (
    "SOURCE", "METADATA", "DATA", "RUN", "STAGE1", "VAE", "IMAGE_ENCODER", "REFERENCE", "AUDIO", "OUT", "WEIGHTS",
    "ADAPTER", "KEYS",
)  # fmt: skip
"""Variables of these targets that are paths, or may be."""
NAMES = ("VAE", "IMAGE_ENCODER")
"""Those among them that may be a name instead, such as `tiny`."""
SILENT_S = 60.0
"""Time that a cluster may be silent, in seconds, before whoever follows a job gives up; the job may go on."""
ASK_S = 15.0
"""Time between two questions whether the cluster answers, in seconds, while a job prints nothing."""
_TALKATIVE = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging",
              "_private.runtime_env.working_dir")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """End of a job."""

    status: int
    """Exit status of its command; 1 where it has none."""
    why: str
    """What became of it, in words."""


# --- what to run ------------------------------------------------------------------------------------------------------


def job_command(text: str) -> list[str]:
    """Command line of a job, as `python -m …`.

    Paths are made absolute: on the cluster they mean the same place on every node, or are not there at all.

    Args:
        text: A Make target with its variables, as they stand after `make`.

    Raises:
        ValueError: It is no job, or make refuses it.
    """
    try:
        target, *given = shlex.split(text) or [""]
    except ValueError as error:
        raise ValueError(f"JOB={text!r} cannot be read: {str(error).lower()}") from error
    if target not in JOBS:
        raise ValueError(f"JOB begins with {target!r}, must begin with one of {', '.join(JOBS)}")
    refuse_credentials(given)
    values = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch("[A-Z][A-Z0-9_]*", name):
            raise ValueError(
                f"JOB has {word!r} after {target}, must be NAME=VALUE; options go into ARGS='--name value'"
            )
        if name == "RAY_ADDRESS":
            raise ValueError("RAY_ADDRESS is given to submit, not within JOB: the job runs on that cluster")
        values[name] = value
    # What make would take by itself is a folder of this checkout.
    values.setdefault("DATA", "build/data")
    return _told_by_make(target, {name: _absolute(name, value) for name, value in values.items()})


def _absolute(name: str, value: str) -> str:
    if name not in PLACES or "://" in value or not value or (name in NAMES and not (ROOT / value).exists()):
        return value
    return str((ROOT / value).absolute())


def _told_by_make(target: str, values: dict[str, str]) -> list[str]:
    """Command that a Make target runs, which is told and not run."""
    # The variables of a make that this process was started by are about other commands.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ}
    show = f"run={shlex.quote(sys.executable)} -m talkinghead.runtime.make_command --show"
    # The virtual environment stays as it is.
    command = ["make", "--silent", "--no-print-directory", "--old-file=.venv/.up-to-date", f"--directory={ROOT}"]
    try:
        done = subprocess.run(
            [*command, target, show, *(f"{name}={value}" for name, value in values.items())],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ValueError("there is no make on this machine, which knows what the targets run") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ValueError(f"make {target} cannot be told: {said[0].removeprefix('error: ')}")
    return ["python", *json.loads(done.stdout.splitlines()[-1])[1:]]


# --- the cluster ------------------------------------------------------------------------------------------------------


def client_of(address: str) -> JobSubmissionClient:
    """Client of a cluster's Ray Jobs.

    Args:
        address: `HOST:PORT` as RAY_ADDRESS has it, or `http://HOST:PORT` of the dashboard.

    Raises:
        ValueError: Nothing answers there, it does not let this process in, or it takes no jobs.
    """
    own = find_own_cluster()
    is_http = address.startswith(("http://", "https://"))
    if not is_http:
        check_answers(address)
    use_token(address)
    dashboard = own.dashboard if own and own.address == address else address
    # The variables would outweigh the address.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    with told(address):
        return JobSubmissionClient(dashboard)


@contextmanager
def told(address: str) -> Iterator[None]:
    """Raise what Ray's client raises as an error in our words."""
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException

    try:
        yield
    except AuthenticationError as error:
        raise ValueError(
            f"the Ray cluster at {address} asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, RayStateApiException) as error:
        raise MachineError(f"the dashboard of the Ray cluster at {address} does not answer") from error
    except (RuntimeError, ValueError) as error:
        text = " ".join(hide_known_secrets(str(error)).split())[:300]
        if "status code 5" in text:  # of the server: it may just be starting
            raise MachineError(f"the dashboard of the Ray cluster at {address} fails: {text}") from error
        raise ValueError(f"the Ray cluster at {address} refuses: {text}") from error


def send(client: JobSubmissionClient, address: str, text: str, command: list[str]) -> str:
    """Send a job to a cluster.

    Args:
        client: Client of the cluster.
        address: Its address, for messages.
        text: The job as the user named it, for the list of the cluster's jobs.
        command: Its command line.

    Returns:
        Its name on the cluster.
    """
    name = f"{text.split()[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    forwarded = {name: os.environ[name] for name in MODEL_VARIABLES if name in os.environ}
    with told(address):
        return client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=name,
            runtime_env=worker_environment(forwarded),
            metadata={"job": text},
        )


class JobEndedError(Exception):
    """End of a followed job that is no success, or of following it; `ending` is that of this process."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.text)
        self.ending = ending


def follow_to_success(client: JobSubmissionClient, address: str, name: str, prog: str) -> None:
    """Follow a job until it ends, and say how.

    Args:
        client: Client of the cluster.
        address: Address of the cluster.
        name: Name of the job.
        prog: Command whose `follow` and `stop` go on from here.

    Raises:
        JobEndedError: It did not succeed, or Ctrl-C ended the following.
    """
    try:
        ended = follow(client, address, name)
    except KeyboardInterrupt:
        again, end = (f"{prog} {verb} {name} --ray-address {address}" for verb in ("follow", "stop"))
        text = f"interrupted; job {name} goes on; follow it with {again}, or stop it with {end}"
        raise JobEndedError(Ending(1, text, at_once=True)) from None
    if ended.status:
        raise JobEndedError(Ending(ended.status, f"error: {ended.why}"))
    print(ended.why, file=sys.stderr)


def follow(client: JobSubmissionClient, address: str, name: str) -> Ended:
    """Print the log of a job, from its beginning, as it grows; returns how the job ended.

    Raises:
        ValueError: There is no such job.
        MachineError: The cluster does not answer any more.
    """
    from aiohttp import ClientError

    printed = _PrintedLog(client, name)
    while True:
        try:
            details = _details(client, address, name)
            asyncio.run(printed.follow(lambda: _details(client, address, name)))
        except (MachineError, RuntimeError, OSError, ClientError) as error:
            # The network, or the head, may be gone for a moment.
            if time.monotonic() - printed.heard_at > SILENT_S:
                raise MachineError(
                    f"the Ray cluster at {address} has not answered for {SILENT_S:.0f} s; job {name} may go on there"
                ) from error
        else:
            if details.status.is_terminal():
                return _ending(details, name)
        time.sleep(0.5)


class _PrintedLog:
    """Log of a job on stderr: each character once, however often the connection is cut."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self._client, self._name = client, name
        self._shown = 0
        self.heard_at = time.monotonic()
        """Time of the newest sign that the connection stands and the cluster answers."""

    async def follow(self, ask: Callable[[], object]) -> None:
        """Print what is not printed yet, and what comes, until the job ends or the connection is cut.

        Args:
            ask: Function that raises where the cluster does not answer, called while nothing comes: the job may be
                quiet, or its machine gone without a word.
        """
        printing = asyncio.ensure_future(self._print())
        try:
            while not (await asyncio.wait({printing}, timeout=ASK_S))[0]:
                await asyncio.to_thread(ask)
                self.heard_at = time.monotonic()
            await printing
            self.heard_at = time.monotonic()
        finally:
            printing.cancel()

    async def _print(self) -> None:
        passed = 0
        async for text in self._client.tail_job_logs(self._name):
            self.heard_at = time.monotonic()
            passed += len(text)
            if passed > self._shown:
                print(text[-(passed - self._shown) :], end="", file=sys.stderr, flush=True)
                self._shown = passed


def _details(client: JobSubmissionClient, address: str, name: str) -> JobDetails:
    try:
        with told(address):
            return client.get_job_info(name)
    except ValueError as error:
        if "does not exist" in str(error) or "status code 404" in str(error):
            raise ValueError(f"there is no job {name} on the cluster at {address}") from error
        raise


def _ending(details: JobDetails, name: str) -> Ended:
    status = details.driver_exit_code
    if details.status == "SUCCEEDED":
        return Ended(0, f"job {name} is done")
    if details.status == "STOPPED":
        return Ended(1, f"job {name} was stopped; submit it again to go on")
    if status is None or status == 0:
        why = " ".join((details.message or "Ray says nothing more").split())[:300]
        return Ended(1, f"job {name} could not run: {why}")
    # A signal's number is negative, as a shell's it is above 128.
    return Ended(status if status > 0 else 128 - status, f"job {name} ended with status {status}, its log says why")


def stop(client: JobSubmissionClient, address: str, name: str) -> bool:
    """Ask for the end of a job, as SIGTERM does; returns whether it was running."""
    _details(client, address, name)
    with told(address):
        return client.stop_job(name)
