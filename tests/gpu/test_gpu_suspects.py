"""What was suspected to go wrong on a GPU only (docs/gpu.md): each test tries it there, and says whether it was real.

A suspect counts as real where it happens with what the library does by itself. The assertions are about what this
project does instead, so that they hold in both cases.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from shards.loader import collate
from shards.reading_processes import ReadingProcesses
from talkinghead.files.storage import Storage
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.lmk2video.unet_blocks import attend, most_rows
from talkinghead.models.speech.encoder import _features, _features_of_rows, build_encoder
from talkinghead.models.speech.weights import Pretrained
from talkinghead.pipelines.memory import kept_aside
from tests.support.face_clips import build_face_data
from tests.support.gpu_bench import Bench, NetworkStep, conversions, free
from tests.support.gpu_report import SUSPECTS
from tests.support.gpu_trainings import small_recipe, trainer_of
from tests.support.lmk2video_tasks import prepared, shake
from tests.support.paths import ROOT
from tests.support.speech_data import build_speech_data
from tests.support.training import tensors_of


def alone(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program by itself: what spoils a process' GPU spoils nothing else."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Last line of what a program said."""
    return ((done.stdout + done.stderr).strip().splitlines() or ["nothing"])[-1][:200]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_01_readers_start_while_the_device_is_in_use(bench: Bench) -> None:
    """After CUDA has its threads, and with work under way, reading processes start and give batches."""
    work = torch.ones(512, 512, device=bench.device)
    items = [{"key": f"a-b-{n}", "slot": n, "value": torch.full((3,), float(n))} for n in range(8)]
    start = time.perf_counter()
    with ReadingProcesses(items, collate, 2, timeout_s=60.0) as processes:
        for turn, batch in enumerate(processes.batches(iter([[0, 1], [2, 3], [4, 5], [6, 7]]))):
            work = work @ work / 512
            value = batch["value"].pin_memory() if bench.gpu else batch["value"]
            assert value.to(bench.device, non_blocking=True)[:, 0].tolist() == [2 * turn, 2 * turn + 1]
        text = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in processes.pids}
    assert not any("/dev/nvidia" in maps for maps in text.values()), "a reader has opened the GPU"
    bench.report.note("readers", start_s=time.perf_counter() - start)
    bench.judge(1, False, "readers are forks of a program of their own, which has no thread and sees no GPU")


# --- kernels ----------------------------------------------------------------------------------------------------------

_ATTENTION = """
import sys, torch
from torch.nn import functional
rows, tokens, backend = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
from torch.nn.attention import SDPBackend, sdpa_kernel
q, k, v = (torch.randn(rows, 8, tokens, 40, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
with sdpa_kernel(getattr(SDPBackend, backend)):
    functional.scaled_dot_product_attention(q, k, v).sum().backward()
torch.cuda.synchronize()
assert q.grad.isfinite().all()
"""


def test_02_attention_takes_any_number_of_rows(bench: Bench) -> None:
    """In parts where one call would be too large; and does this PyTorch take that call?"""
    bench.needs_gpu()
    bench.needs_memory(16)
    tokens, most = bench.frames, most_rows(8, bench.frames, 40)
    states = torch.randn(most + 70, 8, tokens, 40, device=bench.device, dtype=torch.bfloat16)
    inputs = [states.clone().requires_grad_(True) for _ in range(3)]
    attend(*inputs).float().square().sum().backward()
    parts = [states[-70:].clone().requires_grad_(True) for _ in range(3)]
    functional.scaled_dot_product_attention(*parts).float().square().sum().backward()
    for whole, part in zip(inputs, parts, strict=True):
        assert whole.grad is not None and part.grad is not None
        torch.testing.assert_close(whole.grad[-70:], part.grad, rtol=2e-2, atol=2e-2)
    found = {}
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        for rows in (most + 70, 65_536):
            done = alone(_ATTENTION, str(rows), str(tokens), backend)
            found[f"{backend.lower()}_{rows}"] = "works" if done.returncode == 0 else last_line(done)
    bench.report.note("attention over time by number of rows", **found)
    wrong = [name for name, said in found.items() if said != "works"]
    bench.judge(2, bool(wrong), f"fails: {', '.join(wrong) or 'nothing'}")


def test_04_speech_of_many_lengths_is_convolved_at_once(bench: Bench) -> None:
    """As fast as rows of one length, and Python waits for nothing."""
    config = Pretrained("tiny").wav2vec_config() | {"feat_extract_norm": "group"}
    if bench.gpu:
        config |= {"conv_dim": [512] * 7}
    encoder: Any = build_encoder(config).to(bench.device)
    rows, frames = (8, 250) if bench.gpu else (3, 10)
    samples = torch.randn(rows, frames * 640, device=bench.device)
    lengths = torch.linspace(frames // 2, frames, rows).long()
    mask = (torch.arange(frames) < lengths[:, None]).to(bench.device)

    def each_row() -> list[torch.Tensor]:
        counts = mask.sum(dim=1).tolist()
        return [_features(encoder, samples[n : n + 1, : count * 640], count) for n, count in enumerate(counts)]

    with torch.no_grad():
        _features_of_rows(encoder, samples, mask)
        with bench.waits() as places:
            found = _features_of_rows(encoder, samples, mask)
        assert not places
        for row, want in zip(found, each_row(), strict=True):
            torch.testing.assert_close(row[None, : want.shape[1]], want, rtol=2e-2, atol=2e-3)
        at_once, by_rows = (
            bench.milliseconds(run) for run in (lambda: _features_of_rows(encoder, samples, mask), each_row)
        )
    bench.report.note("convolutions of speech", at_once_ms=at_once, row_by_row_ms=by_rows)
    bench.judge(4, bool(by_rows > 1.1 * at_once), f"{by_rows / at_once:.2f} times as long")


def test_05_pose_features_are_kept_in_pinned_memory(bench: Bench) -> None:
    """They go aside and come back without Python waiting, and are the same."""
    feature = torch.randn(1, bench.frames, 320, 64, 64, device=bench.device).to(torch.float16)

    def pinned() -> torch.Tensor:
        return kept_aside(feature).to(bench.device, non_blocking=True)

    bench.milliseconds(pinned)
    with bench.waits() as places:
        back = pinned()
    assert torch.equal(back, feature) and kept_aside(feature).is_pinned() == bench.gpu
    assert not bench.gpu or not places
    fast, slow = (bench.milliseconds(run) for run in (pinned, lambda: feature.cpu().to(bench.device)))
    bench.report.note("pose features aside and back", pinned_ms=fast, pageable_ms=slow)
    bench.judge(5, bool(slow > 1.1 * fast), f"pageable takes {slow / fast:.2f} times as long")


def test_12_images_keep_their_layout(bench: Bench) -> None:
    """Time of stage 1 with channels last and without; its group norms ask for the other layout on a GPU."""
    bench.needs_memory(35)
    found = {}
    for layout in ("channels_last", "contiguous"):
        step = NetworkStep(
            bench, 1, bench.parallel(), samples=bench.images, channels_last=layout == "channels_last", update=False
        )
        found[layout] = bench.milliseconds(step)
        if bench.gpu:
            bench.report.note(f"stage 1, {layout}", layout_kernels=conversions(bench, step))
        free(bench, step.module)
    bench.report.note("stage 1 forward and backward", **{f"{name}_ms": value for name, value in found.items()})
    gain = found["contiguous"] / found["channels_last"]
    bench.judge(12, bool(gain > 1.03), f"channels last is {gain:.2f} times as fast")


def test_13_precision_of_products(bench: Bench) -> None:
    """Time of stage 2's networks, forward and backward for one window, in fp32, TF32 and bf16."""
    bench.needs_memory(70)
    found = {}
    for precision in ("fp32", "tf32", "bf16"):
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        step = NetworkStep(bench, 2, bench.parallel(precision=precision), samples=1, update=False)
        found[f"{precision}_ms"] = bench.milliseconds(step)
        free(bench, step.module)
    bench.report.note("stage 2 forward and backward by precision", **found)
    gain = found["fp32_ms"] / found["tf32_ms"]
    bench.judge(13, bool(gain > 1.1), f"TF32 is {gain:.2f} times as fast as float32")


# --- a step -----------------------------------------------------------------------------------------------------------


STEPS = 5
"""Steps of a training that is watched."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module")
def places(faces: Storage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    """Data and settings of each task; stage 2 has weights of stage 1 to begin from."""
    folder = tmp_path_factory.mktemp("begun")
    task = prepared("stage1", faces, folder / "task")
    module = task.build()
    shake(module)
    (folder / "stage1").mkdir()
    task.export(module.eval(), folder / "stage1")
    speech = build_speech_data(folder / "speech").uri
    return {
        "stage1": (faces.uri, {}),
        "stage2": (faces.uri, {"stage1": str(folder / "stage1")}),
        "audio2mesh": (speech, {}),
        "audio2pose": (speech, {}),
    }


@pytest.mark.parametrize(
    "name",
    [
        "audio2pose",
        pytest.param("stage1", marks=pytest.mark.slow),
        pytest.param("stage2", marks=pytest.mark.slow),
        pytest.param("audio2mesh", marks=pytest.mark.slow),
    ],
)
def test_03_06_07_a_step_does_not_wait_for_the_device(
    bench: Bench, places: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """From the third step on. Poses stay on the device, shapes stay, and seeds need no answer from it."""
    data, settings = places[name]
    recipe = small_recipe(bench, name, settings)
    trainer = trainer_of(tmp_path / "run", name, recipe, data)
    shapes: set[tuple[int, ...]] = set()
    for module in trainer.module.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_pre_hook(lambda _, given: shapes.add((trainer.step, *given[0].shape)))
    try:
        speed = trainer.watched(bench, STEPS)
    finally:
        trainer.close()
    found = {name: value for name, value in speed.items() if name in ("step_s", "data_wait", "to_device")}
    bench.report.note(f"{name}, tiny", **found, waits=len(trainer.places), where="; ".join(trainer.places) or "nowhere")
    by_step = [{shape[1:] for shape in shapes if shape[0] == step} for step in range(STEPS)]
    if name == "audio2pose":
        bench.judge(3, bool(trainer.places), f"{len(trainer.places)} waits in a step of audio2pose")
        new = sum(bool(shapes_of - by_step[0]) for shapes_of in by_step[1:])
        bench.judge(6, bool(new), f"{new} of {STEPS - 1} steps had new shapes of convolutions")
    assert not bench.gpu or not trainer.places, "\n".join(trainer.places)


def test_07_a_step_can_be_recorded_as_a_graph(bench: Bench) -> None:
    """Forward and backward pass of stage 1 in a CUDA graph, and what that saves."""
    bench.needs_gpu()
    bench.needs_memory(40)
    step = NetworkStep(bench, 1, bench.parallel(), samples=1, update=False)
    eager = bench.milliseconds(step)
    # The first pass on the stream of the recording takes what it needs for itself.
    stream, graph = torch.cuda.Stream(bench.device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(bench.device))
    with torch.cuda.stream(stream):
        step()
    bench.wait()
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        bench.judge(7, True, f"it cannot be recorded: {str(error).splitlines()[0][:150]}")
        return
    replayed = bench.milliseconds(graph.replay)
    bench.report.note("stage 1, one image", eager_ms=eager, graph_ms=replayed)
    bench.judge(7, False, f"recorded; replayed in {replayed:.0f} ms instead of {eager:.0f}")
    del graph
    free(bench, step.module)


# --- processes --------------------------------------------------------------------------------------------------------


def test_08_whether_the_device_takes_two_processes(bench: Bench) -> None:
    """A GPU in exclusive mode refuses a validation next to the training."""
    bench.needs_gpu()
    torch.ones(1, device=bench.device)
    done = alone("import torch; print(float(torch.ones(1, device='cuda')))")
    bench.judge(8, done.returncode != 0, f"a second process said: {last_line(done)}")


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]) << 30,) * 2)
import torch
print(float(torch.ones(1, device="cuda")))
"""
_WATCHED = """
import sys
from orchestration.units.memory_limit import limit_memory
limit_memory(float(sys.argv[1]), on_gpu=True)
import torch
print(float(torch.ones(1, device="cuda")))
"""


def test_09_a_limit_of_memory_leaves_the_device_there(bench: Bench) -> None:
    """A unit's process on a GPU has a limit that is watched; and does one from the system keep the GPU away?"""
    bench.needs_gpu()
    done = alone(_WATCHED, "16")
    assert done.returncode == 0, done.stderr
    said = {f"{size} GiB": alone(_LIMITED, str(size)) for size in (8, 64)}
    found = {name: "works" if done.returncode == 0 else last_line(done) for name, done in said.items()}
    bench.report.note("limit of the system before CUDA", **found)
    wrong = [name for name, one in found.items() if one != "works"]
    bench.judge(9, bool(wrong), f"fails with {', '.join(wrong) or 'none'}")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_10_latents_of_two_devices(bench: Bench) -> None:
    """Largest difference of the stored half-precision moments to those of a CPU in float32."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    want = ImageNetworks.load("tiny-kl", "tiny").moments(images).float()
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        networks = ImageNetworks.load("tiny-kl", "tiny").to(bench.device, dtype)
        moments = networks.moments(images.to(bench.device)).cpu().float()
        found[precision] = float((moments - want).abs().max())
        assert found[precision] < 0.1 * float(want.abs().max())
    bench.report.note("difference of latents from a CPU's", **found)
    differ = [name for name, value in found.items() if value]
    bench.judge(10, bool(differ), f"other bits in {', '.join(differ) or 'none'}")


@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_11_a_training_that_goes_on_ends_with_the_same_bits(
    bench: Bench, places: dict[str, Any], deterministic: bool, tmp_path: Path
) -> None:
    """On a CPU always, on a GPU with `--train.parallel.deterministic`."""
    if not bench.gpu and not deterministic:
        pytest.skip("needs a GPU: tests of the trainer hold it for a CPU")
    data, settings = places["stage1"]
    recipe = small_recipe(bench, "stage1", settings, deterministic=deterministic)
    outcomes = []
    for name, stops in (("whole", (2,)), ("in two", (1, 2))):
        for stop in stops:
            trainer = trainer_of(tmp_path / name, "stage1", recipe, data)
            assert trainer.step == (1 if (name, stop) == ("in two", 2) else 0)
            try:
                trainer.watched(bench, stop)
                trainer.checkpoints.save(trainer.step, trainer._state(), block=True)
                outcome = tensors_of(trainer)["module"]
            finally:
                trainer.close()
        outcomes.append(outcome)
    same = all(torch.equal(value, outcomes[1][key]) for key, value in outcomes[0].items())
    if not deterministic:
        bench.judge(11, not same, f"bits without the option: {'same' if same else 'other'}")
    assert same or not deterministic


def test_the_report_names_every_suspect(bench: Bench) -> None:
    """The last test of this file: what was found so far is in both files."""
    bench.report.note("report", suspects=len(SUSPECTS))
    content = json.loads((bench.report.folder / "report.json").read_text())
    assert len(content["suspects"]) == 13 and content["about"]["device"]
    text = (bench.report.folder / "report.txt").read_text()
    assert all(suspect in text for suspect in SUSPECTS.values())
    if bench.gpu:
        open_ones = [one["suspect"] for one in content["suspects"].values() if one["verdict"] == "not judged"]
        assert not open_ones, f"not judged: {', '.join(open_ones)}"
