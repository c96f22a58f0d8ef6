"""Which samples a training has learnt from, and in which steps: from its order, without a log of its batches.

Step k takes the microbatches [(k - 1) M, k M) of the order, where M is the number of microbatches of a step. The order
is a function of the seed and of the samples that the run's pinned indexes and rules give, and does not depend on the
number of ranks, on the size of equal microbatches, or on where the run was killed and went on. Samples that could not
be read, and those that were read in their place, stand in `metrics.jsonl`, one by one. So the answer is exact for every
step that the run is known to have done. It is known by the newest checkpoint, and by the newest line of
`metrics.jsonl`. Steps that were done after both, and lost by a kill, are done again with the same samples when the run
goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.drawn import DrawnDataset
from shards.index import MOST_BYTES, Index, read_index
from shards.manifest import read_manifest, write_manifest
from shards.mixture import MixtureDataset, divide
from shards.order import SampleOrder
from shards.reader import ShardReader
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from train.clip_choice import PinnedVersion
from train.config import TrainConfig
from train.recipe import make_task
from train.run.metrics import Replaced, read_metrics
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
    data: Sequence[str] = (),
    up_to: int | None = None,
) -> Readings:
    """Find out what a run has learnt from.

    Args:
        run: RUN.
        person: Person or split group that is asked for; or
        keys: Keys of samples that are asked for.
        data: Locations of all its data sets, in their order; empty: where the run says.
        up_to: Steps to count, where more are known than RUN tells; None: those that it tells.

    Raises:
        ValueError: There is no run, it has not begun to train, its data set or an index of it is gone, nobody has that
            name, or the run's task reads in an order that is not known here.
        OSError: Something cannot be read.
    """
    folder = RunFolder.open(run)
    folder.refresh()
    if not folder.task_folder.is_dir():
        raise ValueError(f"RUN {folder.path} has not begun to train: it has no {folder.task_folder.name} folder")
    recipe, there = folder.recipe, folder.data_sets
    if data and len(data) != len(there.locations):
        raise ValueError(f"RUN {folder.path} reads {len(there.locations)} data sets: name all of them in their order")
    storages = [Storage(location) for location in data or there.locations]
    places = dataclasses.replace(there, locations=tuple(storage.location for storage in storages))
    pinned = [read.indexes for read in make_task(folder.task, recipe.config, places, folder.task_folder).reads()]
    if not all(pinned):
        raise ValueError(f"RUN {folder.path} does not say which indexes it began with: its order is not known")
    done = steps_done(folder) if up_to is None else up_to
    with contextlib.ExitStack() as stack:
        then = [stack.enter_context(_as_it_was(*one)) for one in zip(storages, pinned, strict=True)]
        # The order by the task itself, over the data sets as they were when the run began.
        roots = dataclasses.replace(there, locations=tuple(str(storage.local_root) for storage in then))
        dataset = make_task(folder.task, recipe.config, roots, folder.task_folder).dataset(recipe.train.seed)
        if isinstance(dataset, DrawnDataset):
            dataset = dataset.dataset
        sources = _sources(dataset, folder.task)
        indexes = [
            read_index(storage, read_manifest(storage).annotation(versions[0].version))
            for storage, versions in zip(then, pinned, strict=True)
        ]
    wanted, unknown = _wanted(indexes, person, keys, storages)
    steps = _steps(dataset, sources, wanted, done, recipe.train)
    return Readings(
        run=str(folder.path),
        up_to=done,
        checkpoints=steps_in(folder.checkpoints),
        asked=sorted(wanted),
        unknown=unknown,
        steps=_as_replaced(steps, read_metrics(folder.metrics).replaced, wanted, done),
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


@dataclass(frozen=True)
class _Source:
    """Samples of one data set: their keys, and the order in which they are drawn."""

    names: list[str]
    order: SampleOrder


def _sources(dataset: Any, task: str) -> list[_Source]:
    """Samples of each data set of a training.

    Raises:
        ValueError: One draws its samples in another way.
    """
    found = []
    for part in dataset.datasets if isinstance(dataset, MixtureDataset) else (dataset,):
        reader, samples, order = (getattr(part, name, None) for name in ("reader", "samples", "order"))
        if not isinstance(reader, ShardReader) or type(order) is not SampleOrder or samples is None:
            raise ValueError(
                f"{task} reads its samples in an order of its own (a {type(part).__name__}), which `train seen` does"
                " not know: nothing can be told about it"
            )
        found.append(_Source([reader.keys[int(number)] for number in samples], order))
    return found


def _wanted(
    indexes: Sequence[Index], person: str | None, keys: Collection[str] | None, storages: Sequence[Storage]
) -> tuple[set[str], list[str]]:
    """Keys that are asked for and in an index, and those that are in none."""
    there: set[str] = set()
    for index in indexes:
        if keys is not None:
            there |= set(index.texts("key")) & set(keys)
        else:
            assert person is not None
            there |= set(index.texts("key")[index.equals("person", person) | index.equals("split_group", person)])
    if keys is None and not there:
        raise ValueError(
            f"no sample of {' and '.join(storage.uri for storage in storages)} belonged to the person or split group"
            f" {shown(person)} when the run began"
        )
    return there, sorted(set(keys or ()) - there)


def _steps(
    dataset: Any, sources: Sequence[_Source], wanted: Collection[str], num_steps: int, train: TrainConfig
) -> dict[str, list[int]]:
    """Key → steps, from 1, that learnt from it."""
    found: dict[str, list[int]] = {}
    if len(sources) == 1 and train.microbatch_seconds is None:
        _count_slots(sources[0], wanted, num_steps, train.global_batch, found)
        return dict(sorted(found.items()))
    order = divide(dataset, size=train.microbatch_size, seconds=train.microbatch_seconds, seed=train.seed)
    for number in range(num_steps * train.microbatches if wanted else 0):
        for share in order.shares(number):
            source, slot = dataset.locate(share.item) if isinstance(dataset, MixtureDataset) else (0, share.slot)
            name = sources[source].names[sources[source].order.at(slot)[1]]
            if name in wanted:
                found.setdefault(name, []).append(number // train.microbatches + 1)
    return dict(sorted(found.items()))


def _as_replaced(
    steps: dict[str, list[int]], replaced: Sequence[Replaced], wanted: Collection[str], num_steps: int
) -> dict[str, list[int]]:
    """Key → steps that learnt from it, of `steps` by the order alone, and of what was read in place of others."""
    found = {key: list(those) for key, those in steps.items()}
    for event in replaced:
        if event.step > num_steps:
            continue
        if event.step in found.get(event.key, ()):
            found[event.key].remove(event.step)
        if event.replacement in wanted:
            found.setdefault(event.replacement, []).append(event.step)
    return {key: sorted(those) for key, those in sorted(found.items()) if those}


def _count_slots(
    source: _Source, wanted: Collection[str], num_steps: int, global_batch: int, found: dict[str, list[int]]
) -> None:
    """Note the steps of samples of equal microbatches, epoch by epoch rather than slot by slot."""
    names, order = source.names, source.order
    numbers = np.array([number for number, name in enumerate(names) if name in wanted], np.int64)
    slots = num_steps * global_batch
    for epoch in range(-(-slots // order.num_samples) if len(numbers) else 0):
        permutation = order.permutation(epoch)
        # The epoch's positions of these samples, as far as the steps go.
        positions = np.flatnonzero(np.isin(permutation, numbers))
        positions = positions[epoch * order.num_samples + positions < slots]
        for position in positions:
            step = (epoch * order.num_samples + int(position)) // global_batch + 1
            found.setdefault(names[int(permutation[position])], []).append(step)


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
