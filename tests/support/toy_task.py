"""A task small enough to train in milliseconds: fit a random linear map, with faults and delays to order.

Register it with `TASKS["toy"] = "tests.support.toy_task"`. What a slot holds depends on (seed, slot) alone, as with the
real loader; `Config` can spoil the loss or only the gradient of chosen slots.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from shards.microbatches import Share
from shards.order import SampleOrder
from talkinghead import rng
from talkinghead.media.talking_video import write_talking_video
from talkinghead.provenance import hash_file
from train.clip_choice import ReadVersions
from train.config import CheckpointConfig, LogConfig, OptimizerConfig, TrainConfig, ValidationConfig
from train.data_sets import DataSets, together
from train.recipe import Recipe
from train.run.crew import ONE, Crew
from train.task import Step, Task, Totals

WEIGHTS = "weights.safetensors"
NUM_INPUTS = 6
HOLD = "TOY_VALIDATION_WAITS"
"""Environment variable that names a file: as long as it is there, no validation ends."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the toy; none of them is realistic."""

    free_settings: ClassVar[tuple[str, ...]] = ("wait_s", "last_slot")
    num_samples: int = 20
    width: int = 8
    num_blocks: int = 2
    dropout: float = 0.0
    noise: float = 0.1
    """Standard deviation of keyed noise that the loss adds to the inputs."""
    bad_loss: tuple[int, ...] = ()
    """Slots whose loss is NaN."""
    bad_gradient: tuple[int, ...] = ()
    """Slots whose loss is finite and whose gradient is not."""
    jump: tuple[int, ...] = ()
    """Slots whose loss is a thousand times as large."""
    held_out: int = 5
    """Number of held-out samples."""
    bad_held_out: tuple[int, ...] = ()
    """Numbers of those that cannot be read."""
    unreadable: tuple[int, ...] = ()
    """Samples that cannot be read, as damaged clips cannot."""
    wait_s: float = 0.0
    """Seconds that reading waits for each sample."""
    last_slot: int | None = None
    """Slot after which reading waits for ever: a training that is to be killed cannot come to its end before."""
    step_s: float = 0.0
    """Seconds that the loss waits for each microbatch."""
    allocate: int = 0
    """Numbers for which the loss asks memory."""
    validate_s: float = 0.0
    """Seconds that a validation takes."""
    fail_validation: int | None = None
    """Number of the process of a crew in which a validation fails."""
    show: bool = False
    """Whether a validation writes an image and a video."""
    features: str = "drawn"
    """Folder with frozen features (`features.safetensors`), or `drawn`: from a seed."""


class Block(nn.Module):
    """Repeated block."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


class ToyModel(nn.Module):
    """Frozen features, trainable blocks and head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.features = nn.Linear(NUM_INPUTS, config.width).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(config.width, config.dropout) for _ in range(config.num_blocks))
        self.head = nn.Linear(config.width, 1)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Prediction, `[B, 6]` → `[B]`."""
        x = self.features(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x).squeeze(-1) * self.scale


class ToyDataset:
    """Items by slot. Each has a length, so that microbatches by length can be made, which changes nothing of it."""

    readers = ()

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.order = SampleOrder(config.num_samples, seed)
        self.num_frames = 25 + np.arange(config.num_samples)

    def __len__(self) -> int:
        return self.config.num_samples

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return f"toy-{self.order.at(Share.of(at).slot)[1]}"

    def __getitem__(self, at: int | Share) -> dict[str, Any]:
        slot = Share.of(at).slot
        while self.config.last_slot is not None and slot > self.config.last_slot:
            time.sleep(0.02)
        if self.config.wait_s:
            time.sleep(self.config.wait_s)
        epoch, sample = self.order.at(slot)
        if sample in self.config.unreadable:
            raise ValueError(f"toy-{sample} is cut off")
        return item_of(sample) | {"slot": slot, "epoch": epoch}


class ToyHeldOut:
    """Held-out items by slot; their samples are those from 2000 on."""

    readers = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.held_out

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return f"toy-{2000 + Share.of(at).slot % len(self)}"

    def __getitem__(self, slot: int) -> dict[str, Any]:
        if slot % len(self) in self.config.bad_held_out:
            raise ValueError(f"{self.key(slot)} is damaged")
        return item_of(2000 + slot % len(self)) | {"slot": slot}


def item_of(sample: int) -> dict[str, Any]:
    """One sample: inputs `[6]` and the target, a fixed function of them."""
    inputs = rng.generator(0, "toy inputs", sample).standard_normal(NUM_INPUTS).astype(np.float32)
    target = np.float32(np.sin(inputs[:3].sum()) + 0.5 * inputs[3])
    return {"key": f"toy-{sample}", "inputs": torch.from_numpy(inputs), "target": torch.tensor(target)}


def batch_of(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacked items."""
    tensors = {name: torch.stack([item[name] for item in items]) for name in ("inputs", "target")}
    return tensors | {"keys": [i["key"] for i in items], "slot": torch.tensor([i.get("slot", 0) for i in items])}


class ToyTask(Task):
    """Toy in training; see `train.task.Task`."""

    def __init__(self, config: Config, data: DataSets | str, folder: Path) -> None:
        self.config, self.folder = config, folder
        (self.data,) = DataSets.of(data).locations

    def check(self) -> dict[str, dict[str, str]]:
        if self.data.endswith("missing"):
            raise ValueError(f"there is no data set at {self.data}")
        if self.config.width % 2 and self.config.width > 0:
            raise ValueError(f"width {self.config.width} must be even")
        if self.config.features == "drawn":
            return {"features": {"kind": "drawn", "name": "drawn", "sha256": "0" * 64}}
        file = Path(self.config.features) / "features.safetensors"
        if not file.is_file():
            raise ValueError(f"there are no features in {self.config.features}")
        return {"features": {"kind": "folder", "name": file.parent.name, "sha256": hash_file(file)}}

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "prepared.txt").write_text(f"{self.data}\n")

    def reads(self) -> tuple[ReadVersions, ...]:
        return (ReadVersions(),)

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = ToyModel(self.config)
        if self.config.features != "drawn":
            model.features.load_state_dict(load_file(Path(self.config.features) / "features.safetensors"))
        return model

    def dataset(self, seed: int) -> ToyDataset:
        return ToyDataset(self.config, seed)

    def held_out(self, seed: int, count: int) -> Any:
        return together([ToyHeldOut(self.config)] if self.config.held_out else [], seed)

    def loss(
        self,
        module: nn.Module,
        batch: dict[str, Any],
        *,
        seed: int,
        step: int,
        total: Totals,
        critic: nn.Module | None = None,
    ) -> Step:
        if self.config.step_s:
            time.sleep(self.config.step_s)
        torch.empty(self.config.allocate)
        slots = batch["slot"].tolist()
        noise = torch.stack(
            [torch.from_numpy(rng.generator(seed, "toy noise", slot).standard_normal(NUM_INPUTS)) for slot in slots]
        )
        inputs = batch["inputs"] + self.config.noise * noise.to(batch["inputs"])
        error = module(inputs).float() - batch["target"]
        loss = error.square()
        if self.config.bad_gradient:
            alive = torch.tensor([float(slot not in self.config.bad_gradient) for slot in slots]).to(error)
            # Where alive is 0: the slope of the root at 0 is infinite, and infinity times 0 is NaN.
            loss = (error * alive).square().sqrt().square()
        spoil = torch.tensor([float("nan") if slot in self.config.bad_loss else 0.0 for slot in slots])
        loss = loss + spoil.to(loss)
        loss = loss * torch.tensor([1e3 if slot in self.config.jump else 1.0 for slot in slots]).to(loss)
        above = batch["target"] > 0
        return Step(losses={"loss": loss, "absolute": error.abs()}, figures={"absolute/above_0": (error.abs(), above)})

    def export(self, module: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / WEIGHTS)
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(self.config)))

    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        time.sleep(self.config.validate_s)
        while HOLD in os.environ and Path(os.environ[HOLD]).exists():
            time.sleep(0.02)
        if self.config.fail_validation == crew.rank:
            raise ValueError("the toy was told to fail its validation")
        module = ToyModel(self.config)
        module.load_state_dict(load_file(weights / WEIGHTS))
        module.to(device)
        own = crew.own(range(8))
        losses: dict[int, float] = {}
        for number in own:
            batch = batch_of([item_of(1000 + number)])
            with torch.no_grad():
                error = module.eval()(batch["inputs"].to(device)).cpu() - batch["target"]
            losses[number] = float(error.square().sum())
        for part in crew.exchange(losses):
            losses |= part
        loss = sum(losses[number] for number in range(8)) / 8
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"measured-by-{crew.rank}.json").write_text(json.dumps(own))
        if not crew.first:
            return {"loss": loss}
        (folder / "validation.json").write_text(json.dumps({"loss": loss}))
        if self.config.show:
            frames = [np.full((48, 64, 3), 9 * number, np.uint8) for number in range(10)]
            Image.fromarray(frames[5]).save(folder / "sheet.png")
            write_talking_video(folder / "clip.mp4", iter(frames), width=64, height=48, fps=25)
        return {"loss": loss}


def tiny() -> Recipe:
    """Eight steps."""
    return Recipe(
        config=Config(),
        train=TrainConfig(
            steps=8,
            global_batch=4,
            microbatch=2,
            num_workers=0,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            checkpoint=CheckpointConfig(every=4, asynchronous=False),
            validation=ValidationConfig(every=0),
            log=LogConfig(every=2, tensorboard=False),
        ),
    )


RECIPES = {"tiny": tiny}


def make(config: Config, data: DataSets | str, folder: Path) -> ToyTask:
    """Toy task."""
    return ToyTask(config, data, folder)
