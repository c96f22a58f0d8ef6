"""What a task may do beyond one loss and one optimiser: an adversary, BatchNorm, counts, batch terms, groups."""

from __future__ import annotations

import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import toy_adversary
from tests.support.toy_adversary import R1_EVERY, ToyAdversaryTask, true_pairs
from tests.support.train_commands import run_train, start_train, toy, wait_for, weights_of
from tests.support.training import Ranks, assert_same, batches_of, lines, recipe, start, tensors_of, train, trainer_of
from train.recipe import Recipe
from train.run.run_folder import RunFolder

ROUNDING = 5e-5  # of float32 sums in another order, through Adam's division, over a few steps
EVERYTHING = {"counts": True, "term": 0.3, "follow": True, "late_head": 2, "dropout": 0.1}


def adversary(toy: dict[str, Any] | None = None, **train: Any) -> Recipe:
    return recipe(toy, toy_adversary.tiny(), **train)


def test_a_step_is_that_of_plain_torch(tmp_path: Path) -> None:
    """One microbatch a step: both turns, spectral norms and BatchNorms as in torch, one power iteration a step."""
    chosen = adversary(steps=6, microbatch=16, ema={"decay": 0.0}, optimizer={"max_gradient_norm": None})
    outcome = train(tmp_path / "run", chosen)
    assert outcome["error"] is None
    task = toy_adversary.make(chosen.config, "none", tmp_path)
    generator, adv = task.build(), task.adversary()
    assert adv is not None
    critic = adv.build()
    # The same networks of torch's own layers.
    reference = torch.nn.Sequential(
        torch.nn.Linear(6, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )
    for theirs, ours in zip(
        (reference[0], reference[1], reference[3]), (generator.first, generator.norm, generator.head), strict=True
    ):
        theirs.load_state_dict(ours.state_dict())
    spectral = [
        torch.nn.utils.spectral_norm(torch.nn.Linear(2, 8, bias=False)),
        torch.nn.utils.spectral_norm(torch.nn.Linear(8, 1)),
    ]
    for theirs, ours in zip(spectral, (critic.first, critic.last), strict=True):
        theirs.load_state_dict(ours.state_dict())
    judge = torch.nn.Sequential(spectral[0], torch.nn.BatchNorm1d(8), torch.nn.Tanh(), spectral[1])
    moves = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    judges = torch.optim.Adam(judge.parameters(), lr=0.0, betas=(0.5, 0.9))
    batches = batches_of(task, 16)
    frozen = [
        {name: value.clone() for name, value in layer.state_dict().items() if name in ("weight_u", "weight_v")}
        for layer in spectral
    ]

    def judged(pairs: torch.Tensor) -> torch.Tensor:
        # Torch iterates in every forward pass; here the vectors stand still within a step.
        for layer, vectors in zip(spectral, frozen, strict=True):
            layer.eval()
            for name, value in vectors.items():
                getattr(layer, name).copy_(value)
        return judge(pairs).squeeze(-1)

    for step in range(6):
        batch = next(batches)
        pairs = reference(batch["inputs"])
        norm = judge[1]
        kept = {name: value.clone() for name, value in norm.state_dict().items()}
        loss = ((pairs - true_pairs(batch)).square().sum(dim=1) - 0.1 * judged(pairs)).mean()
        moves.zero_grad()
        loss.backward()
        norm.load_state_dict(kept)  # of what it judges for the generator it learns nothing
        truth = true_pairs(batch).requires_grad_(True)
        real, made_up = judged(torch.cat([truth, pairs.detach()])).chunk(2)
        hinge = torch.relu(1 - real) + torch.relu(1 + made_up)
        if step % R1_EVERY == 0:
            (slope,) = torch.autograd.grad(real.sum(), truth, create_graph=True)
            hinge = hinge + R1_EVERY * slope.square().sum(dim=1)
        judges.zero_grad()
        hinge.mean().backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        judges.param_groups[0]["lr"] = 5e-3 * (1 - step / 5)
        moves.step()
        judges.step()
        for layer, vectors in zip(spectral, frozen, strict=True):
            matrix = layer.weight_orig.detach()
            vectors["weight_v"] = torch.nn.functional.normalize(matrix.T @ vectors["weight_u"], dim=0)
            vectors["weight_u"] = torch.nn.functional.normalize(matrix @ vectors["weight_v"], dim=0)
    ours = outcome["module"]
    for name, theirs in (("first", reference[0]), ("norm", reference[1]), ("head", reference[3])):
        for part, value in theirs.state_dict().items():
            torch.testing.assert_close(ours[f"{name}.{part}"], value, rtol=1e-4, atol=1e-5)
    ours = outcome["adversary.module"]
    for part, value in judge[1].state_dict().items():
        torch.testing.assert_close(ours[f"norm.{part}"], value, rtol=1e-4, atol=1e-5)
    for name, layer, vectors in (("first", spectral[0], frozen[0]), ("last", spectral[1], frozen[1])):
        torch.testing.assert_close(ours[f"{name}.weight_orig"], layer.weight_orig.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[f"{name}.weight_u"], vectors["weight_u"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("toy", [{}, EVERYTHING], ids=["plain", "everything"])
def test_ranks_and_accumulation_share_a_step(ranks: Ranks, tmp_path: Path, toy: dict[str, Any]) -> None:
    """One rank with four microbatches, two with two each: the unit is the microbatch."""
    alone = train(tmp_path / "1", adversary(toy))
    first, second = ranks.run(train, tmp_path / "2", adversary(toy))
    assert alone["error"] is None and first["error"] is None
    assert_same(first, second)
    assert_same(first, alone, ROUNDING)
    for line, other in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert line.keys() == other.keys()
        for name in ("loss", "fooled", "critic/loss", "critic/r1", "gradient_norm", "critic/gradient_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)


def test_without_batchnorm_any_microbatch_gives_the_same(tmp_path: Path) -> None:
    toy = {"norm": False, "counts": True, "term": 0.3}
    found = [train(tmp_path / str(size), adversary(toy, microbatch=size)) for size in (1, 4, 16)]
    assert found[0]["error"] is None
    for one, two in itertools.pairwise(found):
        assert_same(one, two, ROUNDING)


class Killed(Exception):
    """The process is gone: nothing that the loop does afterwards may matter."""


class Killer(ToyAdversaryTask):
    """Ends the training at a step, in the loss of its second microbatch."""

    def __init__(self, config: toy_adversary.Config, step: int) -> None:
        super().__init__(config, "none", Path())
        self.last = step

    def loss(self, module: Any, batch: Any, **about: Any) -> Any:
        if about["step"] == self.last and int(batch["slot"][0]) % 16:
            raise Killed
        return super().loss(module, batch, **about)


@pytest.mark.parametrize("step", [1, 3, 4, 7])
@pytest.mark.parametrize("toy", [{}, EVERYTHING, {"critic_start": 3}], ids=["plain", "everything", "late critic"])
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path, toy: dict[str, Any], step: int) -> None:
    chosen = adversary(toy, checkpoint={"every": 2}, ema={"decay": 0.9})
    whole = train(tmp_path / "whole", chosen)
    with pytest.raises(Killed):
        train(tmp_path / "run", chosen, task=Killer(chosen.config, step))
    assert_same(train(tmp_path / "run", chosen), whole)


@pytest.mark.parametrize("fault", ["bad_loss", "bad_critic"])
def test_where_one_network_cannot_learn_neither_does(ranks: Ranks, tmp_path: Path, fault: str) -> None:
    chosen = adversary(EVERYTHING | {fault: (39,)}, steps=3, checkpoint={"every": 1, "keep": 9}, log={"every": 1})
    first, second = ranks.run(train, tmp_path / "run", chosen)
    assert first["error"] is None and first["skipped"] == second["skipped"] == 1
    assert_same(first, second)
    event = next(line for line in lines(tmp_path / "run") if line.get("event") == "skipped")
    assert event["what"] == ("loss" if fault == "bad_loss" else "critic/loss") and event["step"] == 3
    trainer = trainer_of(tmp_path / "run", chosen)
    now = trainer._state()
    trainer.checkpoints.load(2, before := trainer._state())
    for part in ("module", "optimizer", "ema"):
        assert all(torch.equal(before[part][name], first[part][name]) for name in first[part]), part
    for part in ("module", "optimizer"):
        kept = before["adversary"][part]
        assert all(torch.equal(kept[name], first[f"adversary.{part}"][name]) for name in kept), part
    assert now
    trainer.close()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"strategy": "fsdp2"}, {"compile": True}])
@pytest.mark.parametrize(
    ("toy", "what"),
    [
        ({"norm": False}, "an adversary"),
        ({"critic": False}, "BatchNorm or spectral normalisation"),
    ],
)
def test_what_no_test_covers_is_refused(tmp_path: Path, option: dict[str, Any], toy: dict[str, Any], what: str) -> None:
    chosen = adversary(toy, parallel=option)
    start(tmp_path / "run", chosen)
    asked = "sharded by FSDP2" if "strategy" in option else "compiled"
    with pytest.raises(ValueError, match=f"a training with {what} cannot be {asked}"):
        trainer_of(tmp_path / "run", chosen)


def test_a_microbatch_of_one_says_what_to_do(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", adversary(microbatch=1))
    assert "BatchNorm in training needs more than one value of each channel: take a microbatch" in outcome["error"]


def test_a_run_whose_samples_depend_on_their_neighbours_keeps_its_microbatch(tmp_path: Path) -> None:
    train(tmp_path / "run", adversary(steps=2))
    with pytest.raises(ValueError, match=r"train\.microbatch: 4 -> 8"):
        start(tmp_path / "run", adversary(steps=2, microbatch=8))


# --- by the command line ----------------------------------------------------------------------------------------------


def state_of(run: Path) -> dict[str, Any]:
    """Everything that the newest checkpoint of a run holds, and its step."""
    folder = RunFolder.open(run)
    trainer = trainer_of(run, folder.recipe)
    found = tensors_of(trainer) | {"step": trainer.step}
    trainer.close()
    return found


def test_killed_at_twenty_random_moments_and_resumed_it_is_the_unbroken_run(tmp_path: Path) -> None:
    """Generator, critic and every buffer, to the bit."""
    options = ("--train.steps", 120, "--train.checkpoint.every", 1, "--train.log.every", 1, "--config.dropout", 0.1)
    more = ("--config.counts", "--config.term", 0.3, "--config.follow", "--config.late-head", 5)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert run_train(tmp_path / "a", *toy(whole, *options, *more, task="toy-adversary")).wait() == 0
    draws, kills = random.Random(5), 0
    while kills < 20:
        command = start_train(tmp_path / f"b{kills}", *toy(run, *options, *more, task="toy-adversary"))
        before = newest(run)
        wait_for(lambda before=before, command=command: newest(run) > before or not command.process.is_alive())
        time.sleep(draws.uniform(0, 0.01))
        command.send(signal.SIGKILL)
        if command.wait() == 0:
            break  # it was faster than the kill
        kills += 1
    assert kills >= 10
    last = run_train(tmp_path / "c", *toy(run, *options, *more, task="toy-adversary"))
    assert last.wait() == 0, last.stderr
    assert weights_of(run) == weights_of(whole)
    assert_same(state_of(run), state_of(whole))


def newest(run: Path) -> int:
    """Step of the newest checkpoint; 0 without one."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????")), default=0)
