"""`infer evaluate --pair`: real clips, tiny weights, from the command to the page; going on, and clips that fail."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infer.__main__ import main
from tests.support.real_clips import OTHER, WOMAN, build_real_data
from tests.support.tiny_pipeline import tiny_pipeline

QUICK = ["--frames", "12", "--seeds", "0", "--steps", "1", "--guidance", "1", "--resamples", "200"]
RENDERED, DRAWN = "truth+lmk2video:w", "audio2lmk:w+landmarks"
SHUFFLED, STILL = f"shuffled sound: {DRAWN}", "still: landmarks"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    root = tmp_path_factory.mktemp("real") / "data"
    build_real_data(root, shared, held_out=False)
    return root


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_weights, tmp_path_factory.mktemp("pairs") / "w"))
    tiny_pipeline(width=64, height=64).save_pretrained(folder / "lmk2video")
    return folder


@pytest.fixture(scope="module")
def pairs(weights: Path) -> list[str]:
    return ["--pair", f"truth+{weights}", "--pair", f"{weights}+landmarks"]


@pytest.fixture(scope="module")
def made(data: Path, pairs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation of two pairs."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    assert main(["evaluate", "--data", str(data), "--split", "train", *pairs, *QUICK, "-o", str(out)]) == 0
    return out


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_bytes())


def means(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {subject["name"]: subject["means"] for subject in found["subjects"]}


def test_every_subject_shows_every_clip(made: Path) -> None:
    found = result(made)
    names = [subject["name"] for subject in found["subjects"]]
    assert names == [
        RENDERED, DRAWN, SHUFFLED, "still: lmk2video:w", "mean motion: lmk2video:w", STILL,
        "mean motion: landmarks", "copied reference", "re-encoded truth", "re-encoded reference", "truth",
    ]  # fmt: skip
    keys = {f"folder-{WOMAN}", f"folder-{OTHER}"}
    for subject in found["subjects"]:
        assert subject["clips"].keys() == keys and not subject["failures"]
    assert {clip["key"] for clip in found["clips"]} == keys and {clip["measured"] for clip in found["clips"]} == {12}


def test_numbers_are_those_of_the_subjects(made: Path) -> None:
    found = means(result(made))
    # The renderer that is driven by the truth has its motion, and a still face that of the copied reference.
    assert found[RENDERED]["lip_error"]["mean"] == 0 == found["truth"]["lip_error"]["mean"]
    still, copy = found[STILL]["lip_error"]["mean"], found["copied reference"]["lip_error"]["mean"]
    assert still == pytest.approx(copy, abs=1e-3) and still > 0
    assert found["mean motion: landmarks"]["lip_error"]["mean"] != pytest.approx(still, abs=1e-3)
    # Another sound moves the mouth differently.
    assert found[SHUFFLED]["lip_error"]["mean"] != found[DRAWN]["lip_error"]["mean"]
    assert found[DRAWN]["psnr"] is None and found[RENDERED]["psnr"]["mean"] > 0
    assert found["re-encoded truth"]["psnr"]["mean"] > found[RENDERED]["psnr"]["mean"]


def test_a_pair_is_compared_with_its_own_baselines(made: Path) -> None:
    found = result(made)
    others = {(item["one"], item["other"]) for item in found["differences"]}
    assert {(DRAWN, SHUFFLED), (DRAWN, STILL), (DRAWN, RENDERED), (DRAWN, "copied reference")} <= others
    assert (RENDERED, STILL) not in others and (RENDERED, "still: lmk2video:w") in others
    floors = {metric["name"]: metric["noise_floor"] for metric in found["metrics"]}
    assert floors["psnr"] > 0 and floors["ssim"] > 0 and floors["lip_error"] > 0


def test_the_record_names_weights_data_and_settings_but_no_folders(made: Path, weights: Path) -> None:
    found = result(made)
    about = {subject["name"]: subject["about"] for subject in found["subjects"]}
    assert re.fullmatch("[0-9a-f]{64}", about[RENDERED]["weights"]["pipeline"]["sha256"])
    assert re.fullmatch("[0-9a-f]{64}", about[DRAWN]["weights"]["audio2mesh"]["sha256"])
    assert found["record"]["seeds"] == [0] and found["record"]["size"] == [64, 64] and found["record"]["index"]
    for name in ("evaluation.json", "evaluation.txt", "index.html"):
        assert str(weights.parent) not in (made / name).read_text()


def test_the_page_holds_everything_itself(made: Path) -> None:
    page = (made / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page and "@import" not in page
    for name in (RENDERED, SHUFFLED, "within the noise", "fewer than 5", "not held out", 'class="strip"'):
        assert name in page, name
    assert page.count("data:image/jpeg;base64,") == 2 * 10


def test_a_second_run_goes_on_from_the_scores(
    made: Path, data: Path, pairs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(made, tmp_path / "again"))
    files = {path: path.stat().st_mtime_ns for path in again.rglob("*.json") if path.parent != again}
    lost, damaged, *_ = sorted(files)
    lost.unlink()
    damaged.write_text("{")
    assert main(["evaluate", "--data", str(data), "--split", "train", *pairs, *QUICK, "-o", str(again)]) == 0
    assert result(again) | {"record": None} == result(made) | {"record": None}
    for path, before in files.items():
        assert (path.stat().st_mtime_ns == before) == (path not in (lost, damaged)), path
    # With other settings, nothing is taken over.
    given = ["--data", str(data), "--split", "train", "--limit", "1", *pairs[2:], *QUICK, "-o", str(again)]
    given[given.index("12")] = "11"
    assert main(["evaluate", *given]) == 0
    (clip,) = result(again)["clips"]
    assert clip["measured"] == 11 and not any(subject["name"] == SHUFFLED for subject in result(again)["subjects"])
    text = (again / "evaluation.txt").read_text()
    assert "single clip" in text and "1 clip of 1 person or source" in text
    assert "the first 1 of 2 clips" in text and "the first" not in (made / "evaluation.txt").read_text()
    capfd.readouterr()


def test_a_clip_that_fails_costs_its_numbers_alone(
    data: Path, pairs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    key = f"folder-{WOMAN}"
    damage(broken, key)
    out = tmp_path / "out"
    assert main(["evaluate", "--data", str(broken), "--split", "train", *pairs[2:], *QUICK, "-o", str(out)]) == 1
    captured = capfd.readouterr()
    assert captured.out.strip() == str(out / "index.html")
    assert [line for line in captured.err.splitlines() if line.startswith("error: ") and key in line]
    found = result(out)
    # The other clip is shuffled with the damaged one's sound, which is whole.
    for subject in found["subjects"]:
        assert subject["clips"].keys() == {f"folder-{OTHER}"} and subject["failures"].keys() == {key}
        assert all(mean is None or mean["clips"] == 1 for mean in subject["means"].values())
    assert f"FAILED: {DRAWN}, {key}" in (out / "evaluation.txt").read_text()
    assert key in (out / "index.html").read_text()


def damage(data: Path, key: str) -> None:
    """Overwrite the video of a clip in its shard."""
    import tarfile

    for path in data.glob("clips-*.tar"):
        with tarfile.open(path) as tar:
            found = [member for member in tar.getmembers() if member.name == f"{key}.mp4"]
        for member in found:
            with path.open("r+b") as file:
                file.seek(member.offset_data)
                file.write(b"\0" * member.size)
            return
    raise AssertionError(key)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on(made: Path, data: Path, pairs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = ["evaluate", "--data", str(data), "--split", "train", *pairs, *QUICK, "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "infer", *command])
    try:
        while process.poll() is None and len(list(out.rglob("scores/*/*.json"))) < 3:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("scores/*/*.json")}
    assert kept and not (out / "evaluation.json").exists()
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert result(out) | {"record": None} == result(made) | {"record": None}


def test_refused_in_one_line_before_weights_are_read(
    data: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for arguments, said in [
        (["--pair", "video"], "must be DRIVER+RENDERER"),
        (["--pair", "dance+landmarks"], "none of the drivers truth"),
        (["--pair", "video+paint"], "none of the renderers"),
        (["--pair", "file+landmarks"], "another driver than file"),
        (["--pair", "audio2lmk+landmarks"], "needs weights"),
        (["--pair", "video+lmk2video"], "needs weights"),
        (["--pair", f"{tmp_path}+landmarks"], "no audio2mesh weights"),
        (["--pair", "video+landmarks", "--pair", "video+landmarks"], "give a pair once"),
        (["--pair", "video+landmarks", "--lmk2video", str(weights)], "give one of"),
        (["--pair", "video+landmarks", "--drive", "next"], "--drive applies to --lmk2video"),
        (["--pair", "video+landmarks", "--seeds", "1", "1"], "--seeds"),
        (["--pair", "video+landmarks", "--width", "64"], "both --width and --height"),
        (["--lmk2video", str(weights), "--seeds", "1"], "--seeds applies to --pair"),
        (["--pair", "video+landmarks", "--split", "test"], "no clip with a face"),
    ]:
        assert main(["evaluate", "--data", str(data), *arguments, "-o", str(out)]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0], (arguments, lines)
    assert main(["evaluate", "--data", str(data), "--pair", "video+landmarks"]) == 2
    assert "give -o DIR" in capfd.readouterr().err and not out.exists()
