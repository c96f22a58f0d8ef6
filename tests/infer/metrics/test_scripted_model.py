"""TorchScript files of strangers: they compute what they would here, and reach nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infer.metrics.learned_metrics import LearnedModels
from infer.metrics.scripted_model import ScriptedModel, ScriptLimits
from infer.metrics.scripted_process import ScriptedProcess
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BATCH = np.random.default_rng(0).normal(size=(3, 3, 40, 40)).astype(np.float32)
SECRET = b"secret of the user's\n"
BYTES = 16


class Describing(nn.Module):
    """An honest network: convolution, recurrence, attention, FFT, threads."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.recurrence = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(16, 2, batch_first=True)
        self.last = nn.Linear(16, 8)

    def part(self, x: Tensor) -> Tensor:
        return self.last(x.mean(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        print("a network may print", x.shape)
        found = torch.relu(self.norm(self.convolution(x))).mean(dim=3).transpose(1, 2)
        found, _ = self.recurrence(self.attention(found))
        halves = torch.jit.fork(self.part, found), torch.jit.fork(self.part, torch.fft.fft(found).real)
        return torch.cat([torch.jit.wait(halves[0]), torch.jit.wait(halves[1])], dim=1)[:, :, None, None]


class Two(nn.Module):
    """Two networks in one."""

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return one.flatten(1), other.mean(dim=1)


class Mapping(nn.Module):
    """Maps a file: as it is loaded, or as it runs; to write it or to read it."""

    def __init__(self, path: str, at_load: bool, shared: bool) -> None:
        super().__init__()
        self.path, self.at_load, self.shared = path, at_load, shared
        self.kept = torch.zeros(BYTES)

    def go(self) -> Tensor:
        mapped = torch.from_file(self.path, self.shared, 16, dtype=torch.uint8)
        if self.shared:
            mapped.fill_(65)
        return mapped.float()

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool, bool, bool]:
        return (self.path, self.at_load, self.shared, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool, bool, bool]) -> None:
        self.path, self.at_load, self.shared, self.training = state[0], state[1], state[2], state[3]
        self.kept = self.go() if self.at_load else torch.zeros(1)  # a mapping that is not kept would not be made

    def forward(self, x: Tensor) -> Tensor:
        return self.go()[None].expand(x.size(0), 16)


class Greedy(nn.Module):
    """Wants more memory than it may have, at once or bit by bit."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once

    def forward(self, x: Tensor) -> Tensor:
        kept = [torch.ones(600000000 if self.at_once else 1)]
        for _ in range(128):
            kept.append(torch.ones(4000000) + x.sum())
        for one in kept:
            x = x + one[0]
        return x.flatten(1)


class Endless(nn.Module):
    """Never comes to an end."""

    def forward(self, x: Tensor) -> Tensor:
        while x.size(0) > 0:
            x = x + 1
        return x


class Talking(nn.Module):
    """Fails with a text of its author's choice."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\n\x1b[2J\x07 to mend this set weights_only=False")


class Wide(nn.Module):
    """Returns more features than anybody needs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(1).expand(x.size(0), 1048577)


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network.eval()).save(str(path))
    return path


def test_features_are_those_that_the_file_computes_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(Describing(), tmp_path / "net.pt")
    here = torch.jit.load(path)
    with torch.inference_mode():
        wanted = [here(torch.from_numpy(BATCH)).flatten(1).numpy() for _ in range(4)]
    model = ScriptedModel.load("identity", path)
    # The first calls are watched, later ones optimised: the same ones there.
    for one in wanted:
        np.testing.assert_array_equal(model.features(BATCH), one)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and model.sha256 in model.provenance()
    # Transposed and of another type: what the values are counts.
    np.testing.assert_array_equal(model.features(BATCH.swapaxes(2, 3).astype(np.float64).swapaxes(2, 3)), wanted[-1])
    pair = ScriptedModel.load("sync", saved(Two(), tmp_path / "two.pt"))
    one, other = pair.pair(BATCH[:, 0], BATCH[:, 1, 0])
    np.testing.assert_array_equal(one, BATCH[:, 0].reshape(3, -1))
    np.testing.assert_allclose(other[:, 0], BATCH[:, 1, 0].mean(axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"sync model .*two\.pt fails on \(3, 3, 40, 40\): .*missing value"):
        pair.features(BATCH)


@pytest.mark.parametrize(
    ("at_load", "there", "shared"),
    [(True, False, True), (False, False, True), (True, True, True), (False, True, False)],
    ids=["made at load", "made in forward", "written at load", "read in forward"],
)
def test_a_file_of_the_user_is_neither_written_nor_read(
    tmp_path: Path, at_load: bool, there: bool, shared: bool
) -> None:
    aim = tmp_path / "aim"
    aim.write_bytes(bytes(BYTES))  # it is mapped while the network is scripted and saved, too
    path = saved(Mapping(str(aim), at_load, shared), tmp_path / "metric.pt")
    aim.write_bytes(SECRET) if there else aim.unlink()
    failing = "cannot be loaded" if at_load else "fails on"
    with pytest.raises(ValueError, match=rf"identity model .*metric\.pt {failing}.*Operation not permitted") as caught:
        ScriptedModel.load("identity", path).features(BATCH)
    assert len(str(caught.value).splitlines()) == 1
    assert (aim.read_bytes() if aim.exists() else None) == (SECRET if there else None)


def test_the_process_has_no_way_out(tmp_path: Path) -> None:
    model = ScriptedModel.load("fid", saved(Describing(), tmp_path / "net.pt"))
    model.features(BATCH)
    process = Path(f"/proc/{model.process.popen.pid}")
    # Every thread, also those that PyTorch had started before, and those that the network starts.
    states = [(thread / "status").read_text() for thread in (process / "task").iterdir()]
    assert len(states) > 1
    assert all("Seccomp:\t2" in state and "NoNewPrivs:\t1" in state for state in states)
    limits = {line[:25].strip(): line[25:].split()[:2] for line in (process / "limits").read_text().splitlines()}
    for name in ("Max open files", "Max file size", "Max core file size"):
        assert limits[name] == ["0", "0"]
    if os.geteuid() == 0:  # it cannot be looked into otherwise
        opened = sorted(str(one.readlink()) for one in (process / "fd").iterdir())
        assert opened[:3] == ["/dev/null"] * 3 and [name.split(":")[0] for name in opened[3:]] == ["pipe"] * 2


@pytest.mark.parametrize("at_once", [True, False])
def test_memory_has_an_end(tmp_path: Path, at_once: bool) -> None:
    path = saved(Greedy(at_once), tmp_path / "greedy.pt")
    model = ScriptedModel.load("fvd", path, ScriptLimits(memory=1.5))
    with pytest.raises(ValueError, match=r"fvd model .*greedy\.pt takes more than 1\.5 GiB .*--metric-memory"):
        model.features(BATCH)
    with pytest.raises(ValueError, match="was ended before"):
        model.features(BATCH)
    # The file itself counts, too.
    big = tmp_path / "big.pt"
    with big.open("wb") as stream:
        stream.truncate(2**27)
    with pytest.raises(ValueError, match=r"big\.pt takes more than 0\.1 GiB for loading"):
        ScriptedModel.load("fvd", big, ScriptLimits(memory=0.1))


def test_time_has_an_end(tmp_path: Path) -> None:
    path = saved(Endless(), tmp_path / "endless.pt")
    model = ScriptedModel.load("sync", path)
    hurried = ScriptedModel(
        purpose="sync", path=path, sha256="", limits=ScriptLimits(seconds=0.5), process=model.process
    )
    with pytest.raises(ValueError, match=r"endless\.pt takes longer than 0\.5 s for a batch of .*--metric-seconds"):
        hurried.features(BATCH)
    assert model.process.popen.returncode == -signal.SIGKILL


def test_a_process_that_dies_is_told_in_one_line(tmp_path: Path) -> None:
    model = ScriptedModel.load("identity", saved(Describing(), tmp_path / "net.pt"))
    os.kill(model.process.popen.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"identity model .*net\.pt fails on .*ended by SIGKILL, as .* memory"):
        model.features(BATCH)


def test_its_words_are_quoted_with_care(tmp_path: Path) -> None:
    model = ScriptedModel.load("identity", saved(Talking(), tmp_path / "talking.pt"))
    with pytest.raises(ValueError, match="fails on") as caught:
        model.features(BATCH)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500 and "weights_only" not in message
    with pytest.raises(ValueError, match="1,048,576 features"):
        ScriptedModel.load("identity", saved(Wide(), tmp_path / "wide.pt")).features(BATCH)


def test_files_that_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fid model .*gone\.pt is not there"):
        LearnedModels(fid=tmp_path / "gone.pt").load()
    os.mkfifo(tmp_path / "pipe.pt")
    for path, kind in ((tmp_path / "pipe.pt", "a named pipe"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"fid model .* is {kind}"):
            LearnedModels(fid=path).load()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "garbage.pt").write_bytes(os.urandom(5000))
    (tmp_path / "empty.pt").touch()
    for name in ("weights.pt", "garbage.pt", "empty.pt"):
        with pytest.raises(ValueError, match=rf"fid model .*{name} .*no TorchScript file: save it with") as caught:
            LearnedModels(fid=tmp_path / name).load()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("deaf", "takes longer than 1 s"),
        ("mute", "takes longer than 1 s"),
        ("closing", "its process closed its pipe"),
        ("huge", "replies with 4,611,686,018,427,387,904 bytes"),
        ("short", "replies with other bytes"),
        ("columns", "replies with other bytes"),
        ("unknown", "fails on"),
        ("pickle", "replies with other bytes"),
        ("endless", "replies with other bytes"),
        ("text", r"\\x1b\[2Jcleared error: \\u202eset $"),
    ],
)
def test_its_replies_are_not_trusted(monkeypatch: pytest.MonkeyPatch, kind: str, message: str) -> None:
    monkeypatch.setenv("TORCH_HOSTILE", kind)
    process = ScriptedProcess(2**30, "tests.support.hostile_child")
    limits = ScriptLimits(seconds=1 if kind in ("deaf", "mute") else 240)
    model = ScriptedModel(purpose="fid", path=Path("broken.pt"), sha256="", limits=limits, process=process)
    try:
        process.wait_until_ready(240)
        with pytest.raises(ValueError, match=rf"^the fid model broken\.pt .*{message}") as caught:
            model.features(np.zeros((16, 3, 112, 112), np.float32))  # more than a pipe holds
        assert str(caught.value).isprintable()
    finally:
        process.end()


def test_a_system_that_cannot_confine_runs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOSTILE", "not confined")
    process = ScriptedProcess(2**30, "tests.support.hostile_child")
    model = ScriptedModel(purpose="fid", path=Path("net.pt"), sha256="", limits=ScriptLimits(), process=process)
    with pytest.raises(ValueError, match=r"^the fid model net\.pt is a program, and .*\(the kernel takes no filter\)"):
        model.wait_until_confined()
    assert process.popen.returncode is not None


def test_it_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOSTILE", "environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("HF_TOKEN", "key")
    process = ScriptedProcess(2**30, "tests.support.hostile_child")
    try:
        process.wait_until_ready(240)
        _, names = process.ask({}, [], most=0, seconds=240)
    finally:
        process.end()
    assert b"TORCH_HOSTILE" in names and b"PATH" in names
    assert b"AWS" not in names and b"HF_" not in names


def test_it_ends_with_its_model_its_block_and_its_parent(tmp_path: Path) -> None:
    path = saved(Endless(), tmp_path / "endless.pt")
    with LearnedModels(fid=path, identity=path).loaded() as networks:
        assert list(networks) == ["identity", "fid"]
        ended = [network.process.popen for network in networks.values()]
        assert [process.poll() for process in ended] == [None, None]
    alone = ScriptedModel.load("fid", path)
    ended.append(alone.process.popen)
    del alone
    assert [process.poll() for process in ended] == [-signal.SIGKILL] * 3
    # A parent that is killed while the network computes.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, numpy\nfrom pathlib import Path\nfrom infer.metrics.scripted_model import ScriptedModel\n"
            "model = ScriptedModel.load('fid', Path(sys.argv[1]))\nprint(model.process.popen.pid, flush=True)\n"
            "model.features(numpy.zeros((1, 3), numpy.float32))",
            str(path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    deadline = time.monotonic() + 240
    try:
        started = processor_ticks(number)
        while processor_ticks(number) < started + 20:  # until it computes, and reads its pipe no more
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
        parent.communicate()
        while alive(number):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        if alive(number):
            os.kill(number, signal.SIGKILL)


def processor_ticks(process: int) -> int:
    """Time that a process has computed."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11])


def alive(process: int) -> bool:
    """Whether a process is there; a zombie, which may stay where nobody takes in orphans, is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
