"""Weights of a whole pipeline: found where users put them, loaded whole or refused, converted and bundled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infer.__main__ import main
from infer.weights.pipeline_weights import INDEX_FILE, NETWORKS, find_pipeline, load_pipeline
from infer.weights.speech_weights import ORIGIN_FILE, find_weights, load_audio2mesh
from talkinghead.models.lmk2video import published as lmk2video_published
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import published_pose_guider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.published_files import published_tensors
from tests.support.tiny_pipeline import keyed, tiny_pipeline, tiny_request

FOUR = ("denoising_unet", "reference_unet", "motion_module", "pose_guider")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as a training exports it. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "pretrained_model"
    tiny_pipeline(width=64, height=96).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as AniPortrait's README says, with small networks in it. Not to be changed."""
    source = tiny_pipeline(vae="tiny-kl", pose_guider=keyed(PoseGuider, 0, **_guider("published")))
    folder = tmp_path_factory.mktemp("published") / "pretrained_model"
    folder.mkdir()
    for name, model in (
        ("denoising_unet", source.denoiser),
        ("motion_module", source.denoiser),
        ("reference_unet", source.reference_net),
        ("pose_guider", source.pose_guider),
    ):
        torch.save(published_tensors(model, motion=name == "motion_module"), folder / f"{name}.pth")
    source.vae.save_pretrained(folder / "sd-vae-ft-mse")
    source.image_encoder.save_pretrained(folder / "image_encoder")
    # Also in AniPortrait's folder, and no pipeline of ours.
    (folder / "stable-diffusion-v1-5").mkdir()
    (folder / "stable-diffusion-v1-5" / INDEX_FILE).write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder.parent


def _guider(mode: Any) -> dict[str, Any]:
    return pose_guider_config("tiny") | published_pose_guider(mode)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loaders of published files, for networks of the size `tiny`."""
    monkeypatch.setattr(
        lmk2video_published, "Denoiser", lambda motion: Denoiser(**denoiser_config("tiny", motion=motion))
    )
    monkeypatch.setattr(lmk2video_published, "ReferenceNet", lambda: ReferenceNet(**reference_net_config("tiny")))
    monkeypatch.setattr(
        lmk2video_published, "PoseGuider", lambda **config: PoseGuider(**(pose_guider_config("tiny") | config))
    )
    yield


def _latents(pipeline: TalkingHeadPipeline, frames: int = 3) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    request = tiny_request(frames)
    found = pipeline(**request, width=64, height=64, num_inference_steps=1, output_type="latent")
    return found.frames  # pyright: ignore[reportAttributeAccessIssue]


def _same(one: TalkingHeadPipeline, other: TalkingHeadPipeline) -> None:
    """Check for equal tensors, and equal results up to rounding (sums depend on how memory is laid out)."""
    for name in NETWORKS:
        states = [getattr(pipeline, name).state_dict() for pipeline in (one, other)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), name
    torch.testing.assert_close(_latents(one), _latents(other), rtol=1e-4, atol=1e-4)


def _link(source: Path, target: Path) -> Path:
    """A copy that takes no time."""
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return target


def test_found_where_users_put_them(exported: Path, tmp_path: Path) -> None:
    for path in (exported, exported / INDEX_FILE, exported.parent):
        place = find_pipeline(path)
        assert place.path == exported and place.published is None and place.origin == "trained"
        assert (place.size, place.size_step) == ((64, 96), 4)
    both = tmp_path / "both"
    _link(exported, both / "stage1" / "pretrained_model")
    assert find_pipeline(both).path == both / "stage1" / "pretrained_model"
    _link(exported, both / "stage2" / "pretrained_model")
    assert find_pipeline(both).path == both / "stage2" / "pretrained_model"
    _link(exported, both / "lmk2video")
    assert find_pipeline(both).path == both / "lmk2video"


def test_published_files_are_found_as_they_are_laid_out(published: Path, tmp_path: Path) -> None:
    for path in (published, published / "pretrained_model"):
        place = find_pipeline(path)
        assert place.published is not None and place.path == published / "pretrained_model"
        assert (place.origin, place.size, place.size_step) == ("published", (512, 512), 8)
    folder = _link(published / "pretrained_model", tmp_path / "files")
    (folder / "motion_module.pth").unlink()
    shutil.rmtree(folder / "sd-vae-ft-mse")
    with pytest.raises(ValueError, match=r"missing in .*files: motion_module\.pth, sd-vae-ft-mse/;"):
        find_pipeline(folder)


def test_a_stage_that_has_not_ended_is_named(exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _link(exported, tmp_path / "stage1")
    assert find_pipeline(tmp_path).path == tmp_path / "stage1" and not caplog.text
    (tmp_path / "stage2" / "checkpoints").mkdir(parents=True)
    assert find_pipeline(tmp_path).path == tmp_path / "stage1"
    assert f"the training in {tmp_path / 'stage2'} has not ended" in caplog.text


def test_other_things(exported: Path, published: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no weights")
    running = tmp_path / "running"
    (running / "checkpoints").mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / INDEX_FILE).write_text('{"_class_name": "StableDiffusionPipeline"}')
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / INDEX_FILE).write_text("{")
    partial = _link(exported, tmp_path / "partial")
    shutil.rmtree(partial / "denoiser")
    empty = _link(published / "pretrained_model", tmp_path / "empty")
    (empty / "pose_guider.pth").unlink()
    (empty / "pose_guider.pth").touch()
    speech = tmp_path / "speech"  # a training of another model
    for name in ("checkpoints", "pretrained_model"):
        (speech / name).mkdir(parents=True)
    for path, message in [
        (tmp_path / "gone", "are not there"),
        (Path("s3://bucket/run"), "copy them out of the store first"),
        (notes, "is a file"),
        (tmp_path, "no pipeline in"),
        (running, "has no pretrained_model yet"),
        (speech, "no pipeline in"),
        (other, "holds StableDiffusionPipeline, but TalkingHeadPipeline is wanted"),
        (damaged, "is not JSON"),
        (partial, "has no denoiser"),
        (empty, "is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_pipeline(path)


def test_a_trained_pipeline_loads_and_says_where_it_is_from(exported: Path, tmp_path: Path) -> None:
    pipeline, about = load_pipeline(find_pipeline(exported.parent), dtype=torch.bfloat16)
    assert pipeline.denoiser.dtype == torch.bfloat16 and not pipeline.denoiser.training
    assert not pipeline.config["compat"]
    found = about["pipeline"]
    assert (found["path"], found["origin"], found["pose_guider"]) == (str(exported), "trained", "frame")
    assert found["files"].keys() == set(NETWORKS) and len(found["sha256"]) == 64
    other = shutil.copytree(exported, tmp_path / "other")
    pipeline.denoiser.save_pretrained(other / "denoiser")
    changed = load_pipeline(find_pipeline(other))[1]["pipeline"]
    differing = {name for name in NETWORKS if changed["files"][name] != found["files"][name]}
    assert differing == {"denoiser"} and changed["sha256"] != found["sha256"]
    with pytest.raises(ValueError, match="are for AniPortrait's published weights"):
        load_pipeline(find_pipeline(exported), pose_guider_mode="running")


def test_a_damaged_network_is_named(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "damaged")
    file = folder / "denoiser" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="denoiser is no whole Denoiser"):
        load_pipeline(find_pipeline(folder))


@pytest.mark.usefixtures("small")
def test_converted_files_compute_what_the_published_ones_do(
    published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "pipeline"
    assert main(["convert", "--weights", str(published), "-o", str(folder)]) == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == str(folder)
    for name in FOUR:
        assert f"{name}.pth as {name}" in printed.err
    assert printed.err.count("missing: none") == 4 and list(folder.parent.iterdir()) == [folder]

    straight, about = load_pipeline(find_pipeline(published))
    place = find_pipeline(folder)
    converted, later = load_pipeline(place)
    assert converted.config["compat"] and converted.config["fps"] == 30 and place.size == (512, 512)
    assert converted.scheduler.config["beta_schedule"] == "linear"
    assert place.origin == "published" and later["pipeline"]["pose_guider"] == "published"
    origin = json.loads((folder / ORIGIN_FILE).read_bytes())
    assert {name: origin["files"][name]["sha256"] for name in FOUR} == {
        name: about["pipeline"]["files"][name] for name in FOUR
    }
    _same(converted, straight)
    converted.save_pretrained(tmp_path / "again")
    again, index = (json.loads((path / INDEX_FILE).read_bytes()) for path in (tmp_path / "again", folder))
    assert {k: v for k, v in again.items() if k[0] != "_"} == {k: v for k, v in index.items() if k[0] != "_"}
    assert main(["convert", "--weights", str(published), "-o", str(folder)]) == 2
    assert main(["convert", "--weights", str(folder), "-o", str(tmp_path / "x")]) == 2
    assert "there is nothing to convert" in capfd.readouterr().err


@pytest.mark.usefixtures("small")
def test_single_files_and_modes(published: Path, tmp_path: Path) -> None:
    files = published / "pretrained_model"
    named = {name: files / f"{name}.pth" for name in FOUR}
    named |= {"vae": files / "sd-vae-ft-mse", "image_encoder": files / "image_encoder"}
    options = [text for name, path in named.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    running = tmp_path / "running"
    assert main(["convert", *options, "--pose-guider-mode", "running", "-o", str(running)]) == 0
    pipeline, about = load_pipeline(find_pipeline(running))
    assert about["pipeline"]["pose_guider"] == "running" and pipeline.pose_guider.frames_are_independent
    straight, _ = load_pipeline(find_pipeline(published), pose_guider_mode="running")
    back, _ = load_pipeline(find_pipeline(running), pose_guider_mode="published")
    shipped, _ = load_pipeline(find_pipeline(published))
    _same(pipeline, straight)
    shown = _latents(back)
    torch.testing.assert_close(shown, _latents(shipped), rtol=1e-4, atol=1e-4)
    assert (shown - _latents(pipeline)).abs().max() > 0.01
    mixed = tmp_path / "mixed"
    assert main(["convert", "--lmk2video", str(running), "--pose-guider-mode", "trained", "-o", str(mixed)]) == 0
    assert load_pipeline(find_pipeline(mixed))[1]["pipeline"]["pose_guider"] == "trained"


@pytest.mark.usefixtures("small")
def test_files_that_do_not_fit_leave_nothing(
    published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = published / "pretrained_model"
    swapped = ["--reference-unet", str(files / "denoising_unet.pth")]
    target = tmp_path / "out"
    assert main(["convert", "--weights", str(published), *swapped, "-o", str(target)]) == 2
    error = capfd.readouterr().err
    assert "error: denoising_unet.pth does not hold the weights of a reference_unet" in error
    assert "It looks like a denoising_unet" in error and list(tmp_path.iterdir()) == []
    for options, message in [
        (["--pose-guider", str(files / "pose_guider.pth")], "denoising_unet.pth, reference_unet.pth"),
        (["--pose-guider-mode", "running"], "give --weights too"),
        (["--weights", str(published), "--chunking", "restart"], "--chunking goes with --audio2pose alone"),
        (["--weights", str(published), "--lmk2video", str(published)], "--lmk2video names the whole"),
    ]:
        assert main(["convert", *options, "-o", str(target)]) == 2
        assert message in capfd.readouterr().err
    assert not target.exists()


def test_trainings_become_one_folder(exported: Path, tiny_weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "audio2mesh-run"
    shutil.copytree(tiny_weights / "audio2mesh", run / "pretrained_model")
    (run / "pretrained_model" / "speakers.json").write_text('{"about": "left by a training"}')
    folder = tmp_path / "all"
    arguments = ["--lmk2video", str(exported.parent), "--audio2mesh", str(run)]
    arguments += ["--audio2pose", str(tiny_weights / "audio2pose")]
    assert main(["convert", *arguments, "-o", str(folder)]) == 0
    assert (folder / "audio2mesh" / "speakers.json").is_file()
    place = find_pipeline(folder)
    assert (place.path, place.size, place.origin) == (folder, (64, 96), "trained")
    pipeline, _ = load_pipeline(place)
    mesh = load_audio2mesh(find_weights("audio2mesh", tiny_weights)).model
    assert pipeline.audio2pose is not None and pipeline.audio2mesh is not None
    assert torch.equal(pipeline.audio2mesh.out_fn.weight, mesh.out_fn.weight)
    assert find_weights("audio2pose", folder).path == folder / "audio2pose"
    pipeline.save_pretrained(tmp_path / "again")
    again, index = (json.loads((path / INDEX_FILE).read_bytes()) for path in (tmp_path / "again", folder))
    assert {k: v for k, v in again.items() if k[0] != "_"} == {k: v for k, v in index.items() if k[0] != "_"}


def test_a_converted_folder_tells_nothing_of_the_machine(
    small: None, published: Path, exported: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """It is passed on: no text in it holds a path, neither of this machine nor of the one where it was made."""
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    for file in (other / "vae" / "config.json", other / INDEX_FILE):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_name_or_path": "/home/maker/vae"}))
    sources = {"published": published, "copied": other}
    for name, source in sources.items():
        option = "--weights" if name == "published" else "--lmk2video"
        speech = ["--audio2mesh", str(tiny_weights / "audio2mesh")]
        assert main(["convert", option, str(source), *speech, "-o", str(tmp_path / name)]) == 0
        for file in (tmp_path / name).rglob("*.json"):
            text = file.read_text()
            assert str(tmp_path.parent) not in text and str(tiny_weights) not in text, file
            assert "/home/maker" not in text, file


def test_a_copy_holds_settings_and_weights_only(
    exported: Path, tiny_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stranger's folder may hold links to the user's files, and the copy may be published."""
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key.json").write_text('{"token": "secret"}')
    speech = ["--audio2mesh", str(tiny_weights / "audio2mesh")]

    def convert(change: Callable[[Path], object]) -> str:
        place = tmp_path / "source"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        change(Path(shutil.copytree(exported, place)))
        status = main(["convert", "--lmk2video", str(place), *speech, "-o", str(tmp_path / "new")])
        printed = capfd.readouterr().err
        assert status == (0 if (tmp_path / "new").exists() else 2), printed
        for file in (tmp_path / "new").rglob("*"):
            assert not file.is_symlink() and (file.is_dir() or b"secret" not in file.read_bytes()), file
        return printed.splitlines()[-1]

    def link(name: str, target: str) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(tmp_path / target)

        return change

    convert(lambda _: None)
    assert (tmp_path / "new" / "vae" / "config.json").is_file()
    convert(link("notes.txt", "key"))
    assert sorted(file.name for file in (tmp_path / "new").iterdir() if file.is_file()) == [INDEX_FILE]
    assert "is a link" in convert(link("speakers.json", "key.json"))
    assert "is a link" in convert(link("denoiser/config.json", "key.json"))
    assert "cannot be read as weights" in convert(link("denoiser/other.safetensors", "key"))
    whole = exported / "denoiser" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "blob").write_bytes(whole.read_bytes())
    convert(link("denoiser/diffusion_pytorch_model.safetensors", "blob"))
    copy = tmp_path / "new" / "denoiser" / "diffusion_pytorch_model.safetensors"
    assert copy.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (INDEX_FILE, {"width": "wide"}, "gives the size 'wide'"),
        (INDEX_FILE, {"height": 10**9}, "gives the size"),
        ("vae/config.json", {"patch": 10**9}, "has blocks of 1000000000 pixels"),
        ("vae/config.json", {"patch": None}, "has blocks of None pixels"),
        (
            "vae/config.json",
            {"_class_name": "AutoencoderKL", "block_out_channels": [1] * 99},
            "does not describe a VAE",
        ),
    ],
)
def test_odd_numbers_in_settings_are_told_before_anything_is_loaded(
    exported: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    place = Path(shutil.copytree(exported, tmp_path / "odd"))
    (place / file).write_text(json.dumps(json.loads((place / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        find_pipeline(place)
