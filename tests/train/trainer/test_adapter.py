"""LoRA in a training: what is trained, kept, merged and written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from talkinghead.models.adapters.adapter_folder import Adapter
from tests.support import toy_task
from tests.support.training import Ranks, assert_same, recipe, start, train, trainer_of
from train.config import LoraConfig
from train.recipe import Recipe

ROUNDING = 2e-5


def adapted(match: str | None = "linear", also_train: str | None = None, **train: object) -> Recipe:
    lora = LoraConfig(match=match, rank=2, alpha=2.0, also_train=also_train) if match else LoraConfig()
    return dataclasses.replace(recipe({"dropout": 0.2}, **train), lora=lora)


def test_only_the_additions_are_trained_and_kept(tmp_path: Path) -> None:
    chosen = adapted(also_train=r"head\.")
    outcome = train(tmp_path / "run", chosen)
    assert outcome["error"] is None
    names = {f"blocks.{n}.linear.lora_{kind}" for n in range(2) for kind in "AB"} | {"head.weight", "head.bias"}
    assert set(outcome["ema"]) == names
    assert {name for name in outcome["module"] if name != "scale"} == names, "a checkpoint holds nothing else"
    assert {name.split(".", 1)[1].rpartition(".")[0] for name in outcome["optimizer"]} == names


def test_the_export_is_merged_and_the_adapter_gives_it_again(tmp_path: Path) -> None:
    chosen = adapted(also_train=r"head\.", steps=12)
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    trainer.fit()
    out = tmp_path / "out"
    out.mkdir()
    trainer.export(out)
    base = toy_task.make(chosen.config, "none", tmp_path).build()
    merged = load_file(out / "weights.safetensors")
    assert merged.keys() == base.state_dict().keys(), "no other names"
    changed = {name for name, value in base.state_dict().items() if not torch.equal(value, merged[name])}
    assert changed == {"blocks.0.linear.weight", "blocks.1.linear.weight", "head.weight", "head.bias"}
    # The adapted module, with the averages in it, computes what the merged weights compute.
    with torch.no_grad():
        for name, average in trainer.ema.average.items():
            trainer.learner.parameters[name].copy_(average)
    plain = toy_task.ToyModel(chosen.config)
    plain.load_state_dict(merged)
    x = torch.randn(5, toy_task.NUM_INPUTS)
    torch.testing.assert_close(plain.eval()(x), trainer.module.eval()(x), rtol=1e-5, atol=1e-6)
    # The adapter alone gives them again.
    adapter = Adapter.read(out)
    assert (adapter.settings.task, adapter.settings.rank, adapter.settings.match) == ("toy", 2, "linear")
    adapter.apply(base, "base")
    for name, value in base.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-7)
    trainer.close()


def test_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", adapted())
    train(tmp_path / "run", adapted(steps=4))
    (tmp_path / "run" / "out").rename(tmp_path / "earlier")
    assert_same(train(tmp_path / "run", adapted()), whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_like_one(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    alone = train(tmp_path / "alone", adapted())
    first, second = ranks.run(train, tmp_path / "run", adapted(parallel={"strategy": strategy}))
    assert first["error"] is None
    assert_same(first, second)
    assert_same(first, alone, ROUNDING)
    mine, theirs = (load_file(tmp_path / name / "out/weights.safetensors") for name in ("run", "alone"))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("match", "words"),
    [("nothing", "finds no layer"), ("features", "only layers that this task does not train, such as features")],
)
def test_a_match_without_a_layer_is_an_error(tmp_path: Path, match: str, words: str) -> None:
    chosen = adapted(match)
    start(tmp_path / "run", chosen)
    with pytest.raises(ValueError, match=words):
        trainer_of(tmp_path / "run", chosen)


def test_another_lora_is_another_run(tmp_path: Path) -> None:
    train(tmp_path / "run", adapted(steps=4))
    with pytest.raises(ValueError, match=r'lora\.match: "linear" -> "head"'):
        start(tmp_path / "run", adapted("head"))
    with pytest.raises(ValueError, match=r'lora\.match: "linear" -> null'):
        start(tmp_path / "run", adapted(None))
