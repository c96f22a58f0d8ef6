"""The list of recipes: what each needs and costs, without data and without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.train_commands import run_train
from train.listing import listing, table
from train.recipe import make_task, recipes_of


def test_sizes_are_those_of_the_networks_that_are_trained(tmp_path: Path) -> None:
    """Also those of networks that are drawn from a seed; `small` is another size."""
    tiny, small, paper, *many = listing("stage1")
    assert [one.recipe for one in (tiny, small, paper, *many)] == list(recipes_of("stage1"))
    module = make_task("stage1", recipes_of("stage1")["tiny"]().config, "none", tmp_path).build()
    assert tiny.cost is not None and small.cost is not None
    assert tiny.cost.parameters == sum(p.numel() for p in module.parameters())
    assert tiny.cost.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert small.cost.trained > 20 * tiny.cost.trained
    # Weights, gradients, two moments and averages, and buffers.
    assert tiny.cost.memory_bytes > 4 * (tiny.cost.parameters + 4 * tiny.cost.trained)
    assert tiny.steps == 800 and tiny.samples == 8 and tiny.short_name == "stage1"
    # Weights that are not here: no number, and which they are.
    assert paper.cost is None and paper.unknown == "its weights are not here"
    assert [need.setting for need in paper.needs if need.missing] == [
        "--config.vae",
        "--config.image-encoder",
        "--config.sd15",
    ]
    assert not any(need.missing for one in (tiny, small) for need in one.needs)
    text = table([tiny, paper])
    assert "4.66 million of 4.92 million parameters trained" in text
    # Where nothing can be counted, the recipe's own text says what is known.
    assert "1.89 billion parameters are trained" in " ".join(text.split())
    assert "trains   800 steps of 8 samples, in microbatches of 4\n  ranks    1, 2\n" in text
    assert "in microbatches by the number of ranks, of at most 4\n  ranks    1, 2, 4, 8\n" in text


def test_recipes_for_many_gpus_are_listed(tmp_path: Path) -> None:
    done = run_train(tmp_path, "list", "audio2mesh")
    assert done.process.exitcode == 0, done.stderr
    for name, batch in (("a100x4", 32), ("h100x8", 64), ("h100x64", 128)):
        _, text = done.stdout.split(f"audio2mesh {name}\n")
        text = " ".join(text.split("\n\n")[0].split())
        assert f"12,500 steps of {batch} samples, in microbatches by the number of ranks, of at most 32" in text
        assert "Memory of a GPU, counted: " in text and "Time, counted: " in text


def test_what_depends_on_the_data_is_not_known() -> None:
    tiny = listing("audio2pose")[0]
    assert tiny.cost is None and tiny.unknown is not None and "depend on the data" in tiny.unknown
    assert tiny.columns == ["pose_matrix", "valid"] and "not known" in table([tiny])


def test_weights_that_are_there_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen from the working folder, like the training's own settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage1").mkdir()
    (need, *_), *_ = [one.needs for one in listing("stage2")]
    assert need.value == "stage1" and not need.missing


def test_the_command(tmp_path: Path) -> None:
    done = run_train(tmp_path / "a", "list", "toy", "--json")
    assert done.process.exitcode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["recipe"] == "tiny" and found["about"] == "Eight steps." and found["cost"]["trained"] == 185
    done = run_train(tmp_path / "b", "list", "toy")
    assert done.process.exitcode == 0 and "185 of 241 parameters trained" in done.stdout
    done = run_train(tmp_path / "c", "list", "toyy")
    assert done.process.exitcode == 2 and "there is no task 'toyy'" in done.errors[0]
