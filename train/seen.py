"""Which samples a training has learnt from, and in which steps: from its order alone, without a log of its batches.

Step k takes the slots [(k - 1) B, k B) of the order, where B is the global batch. The order is a function of the seed
and of the samples that the run's pinned indexes and rules give, and does not depend on microbatches, on the number of
ranks, or on where the run was killed and went on. So the answer is exact for every step that the run is known to have
done. It is known by the newest checkpoint, and by the newest line of `metrics.jsonl`. Steps that were done after both,
and lost by a kill, are done again with the same samples when the run goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.index import MOST_BYTES, Index, read_index
from shards.manifest import read_manifest, write_manifest
from shards.order import SampleOrder
from shards.reader import ShardReader
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from train.clip_choice import PinnedVersion
from train.recipe import make_task
from train.run.metrics import read_metrics
from train.run.run_folder import RunFolder, steps_in

_SHOWN = 20  # steps or keys in a line


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What a run has learnt from, of the samples that were asked for."""

    run: str
    up_to: int
    """Steps that the run is known to have done."""
    checkpoints: list[int]
    """Steps of the checkpoints that are there."""
    asked: list[str]
    """Keys of the samples that were asked for and that the index of the run's start has."""
    unknown: list[str] = field(default_factory=list)
    """Keys that it does not have."""
    steps: dict[str, list[int]]
    """Key of each sample that was learnt from → the steps, from 1, ascending; twice where a step has it twice."""

    @property
    def first_step(self) -> int | None:
        """First step that learnt from one of them."""
        return min((steps[0] for steps in self.steps.values()), default=None)


def readings_of(
    run: str | Path,
    *,
    person: str | None = None,
    keys: Collection[str] | None = None,
    data: str | None = None,
    up_to: int | None = None,
) -> Readings:
    """Find out what a run has learnt from.

    Args:
        run: RUN.
        person: Person or split group that is asked for; or
        keys: Keys of samples that are asked for.
        data: Location of the data set; None: where the run says.
        up_to: Steps to count, where more are known than RUN tells; None: those that it tells.

    Raises:
        ValueError: There is no run, it has not begun to train, its data set or an index of it is gone, nobody has that
            name, or the run's task reads in an order that is not known here.
        OSError: Something cannot be read.
    """
    folder = RunFolder.open(run)
    if not folder.task_folder.is_dir():
        raise ValueError(f"RUN {folder.path} has not begun to train: it has no {folder.task_folder.name} folder")
    recipe, storage = folder.recipe, Storage(data or folder.data)
    pinned = make_task(folder.task, recipe.config, storage.location, folder.task_folder).reads().indexes
    if not pinned:
        raise ValueError(f"RUN {folder.path} does not say which indexes it began with: its order is not known")
    done = steps_done(folder) if up_to is None else up_to
    with _as_it_was(storage, pinned) as then:
        # The order by the task itself, over the data set as it was when the run began.
        task = make_task(folder.task, recipe.config, str(then.local_root), folder.task_folder)
        batch, seed = recipe.train.global_batch, recipe.train.seed
        loader = task.loader(global_batch=batch, seed=seed, rank=0, world=1, num_workers=0)
        names, order = _order_of(loader.dataset, folder.task)
        index = read_index(then, read_manifest(then).annotation(pinned[0].version))
    wanted, unknown = _wanted(index, person, keys, storage)
    return Readings(
        run=str(folder.path),
        up_to=done,
        checkpoints=steps_in(folder.checkpoints),
        asked=sorted(wanted),
        unknown=unknown,
        steps=_steps(names, order, wanted, done, recipe.train.global_batch),
    )


def steps_done(run: RunFolder) -> int:
    """Steps that a run is known to have done: by its newest checkpoint, or by the newest line of its figures."""
    return max([read_metrics(run.metrics).step, *steps_in(run.checkpoints)])


@contextlib.contextmanager
def _as_it_was(storage: Storage, pinned: tuple[PinnedVersion, ...]) -> Iterator[Storage]:
    """The data set's manifest and indexes as they were when a run began, in a folder of their own: no shards.

    Raises:
        ValueError: A version or an index is gone.
    """
    manifest = read_manifest(storage)
    indexes = {version.version: version.index for version in pinned}
    if lost := indexes.keys() - {entry.version for entry in manifest.annotations}:
        raise ValueError(
            f"{storage.uri} has no version {', '.join(sorted(lost))} any more, over which the run's order is: what it"
            " has learnt from cannot be told"
        )
    with tempfile.TemporaryDirectory(prefix="talkinghead-") as folder:
        then = Storage(folder)
        entries = []
        for entry in manifest.annotations:
            path = indexes.get(entry.version, entry.index)
            try:
                content = storage.read(path, MOST_BYTES, "index")
            except FileNotFoundError:
                if entry.version not in indexes:
                    raise
                raise ValueError(
                    f"{storage.describe(path)}, over which the run's order is, is gone (make gc takes it away after a"
                    f" removal): what the run has learnt from cannot be told any more. {storage.describe('removed')}"
                    " holds what was known when samples were removed"
                ) from None
            sha256 = hash_bytes(content)
            if dataroot.index(entry.version, sha256) != path:
                raise ValueError(f"{storage.describe(path)} is damaged: its name holds another hash")
            then.write(path, content)
            entries.append(replace(entry, index=path, index_sha256=sha256))
        write_manifest(then, replace(manifest, annotations=entries))
        yield then


def _order_of(dataset: Any, task: str) -> tuple[list[str], SampleOrder]:
    """Keys of the samples of an epoch, and their order.

    Raises:
        ValueError: The data set draws its samples in another way.
    """
    reader, samples, order = (getattr(dataset, name, None) for name in ("reader", "samples", "order"))
    if not isinstance(reader, ShardReader) or type(order) is not SampleOrder or samples is None:
        raise ValueError(
            f"{task} reads its samples in an order of its own (a {type(dataset).__name__}), which `train seen` does not"
            " know: nothing can be told about it"
        )
    return [reader.keys[int(number)] for number in samples], order


def _wanted(
    index: Index, person: str | None, keys: Collection[str] | None, storage: Storage
) -> tuple[set[str], list[str]]:
    """Keys that are asked for and in the index, and those that are not."""
    if keys is not None:
        there = set(index.texts("key")) & set(keys)
        return there, sorted(set(keys) - there)
    assert person is not None
    rows = index.equals("person", person) | index.equals("split_group", person)
    if not rows.any():
        raise ValueError(
            f"no sample of {storage.uri} belonged to the person or split group {shown(person)} when the run began"
        )
    return set(index.texts("key")[rows]), []


def _steps(
    names: list[str], order: SampleOrder, wanted: Collection[str], num_steps: int, global_batch: int
) -> dict[str, list[int]]:
    """Key → steps, from 1, that learnt from it."""
    numbers = np.array([number for number, name in enumerate(names) if name in wanted], np.int64)
    found: dict[str, list[int]] = {}
    slots = num_steps * global_batch
    for epoch in range(-(-slots // order.num_samples) if len(numbers) else 0):
        permutation = order.permutation(epoch)
        # The epoch's positions of these samples, as far as the steps go.
        positions = np.flatnonzero(np.isin(permutation, numbers))
        positions = positions[epoch * order.num_samples + positions < slots]
        for position in positions:
            step = (epoch * order.num_samples + int(position)) // global_batch + 1
            found.setdefault(names[int(permutation[position])], []).append(step)
    return dict(sorted(found.items()))


def table(found: Readings) -> str:
    """Readings as lines for people: each sample with its steps, then what there is to know of the run."""
    lines = []
    for key, twice in found.steps.items():
        steps = list(dict.fromkeys(twice))
        shown_steps = ", ".join(map(str, steps[:_SHOWN])) + (f", … ({len(steps)} in all)" if steps[_SHOWN:] else "")
        lines.append(f"{key}\tsteps {shown_steps}")
    if found.unknown:
        more = f" and {len(found.unknown) - _SHOWN} more" if found.unknown[_SHOWN:] else ""
        lines.append(f"not in the data set as the run began: {', '.join(found.unknown[:_SHOWN])}{more}")
    lines.append(
        f"{found.run}: {len(found.steps)} of {len(found.asked)} samples were learnt from in steps 1 … {found.up_to}"
    )
    if (first := found.first_step) is not None:
        made = [step for step in found.checkpoints if step >= first]
        lines.append(f"checkpoints made of them: {', '.join(map(str, made)) or 'none that is still there'}")
    return "\n".join(lines)
