"""Checkpoints of a run on an object store: written into the working folder of each machine, and counted by the store.

Every rank copies its own files to the store as soon as they are on the disk, in the background writer. When all have
done so, rank 0 lists the checkpoint there (`train.run.run_store`), and from then on it counts. Retention goes the other
way: out of the listing first, then the files. A working folder keeps what its machine has written as long as the store
lists it; what it lacks is fetched before it is read, once for each machine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from talkinghead.files.atomic import sweep, sync
from train.run.run_folder import RunFolder, folder_name
from train.run.run_store import CHECKPOINTS, RunStore
from train.trainer.checkpoint_files import ABOUT, DAMAGED, About, CheckpointFolder, write_hashed


def checkpoint_folder(run: RunFolder, *, first: bool) -> CheckpointFolder:
    """RUN/checkpoints, wherever RUN is.

    Args:
        run: Folder of the run.
        first: Whether this rank is the first one of its machine.
    """
    if run.store is None:
        return CheckpointFolder(run.checkpoints, run.run_id)
    return StoredCheckpoints(run.checkpoints, run.run_id, run.store, first)


class StoredCheckpoints(CheckpointFolder):
    """RUN/checkpoints of a run on an object store, and the folder for it on this machine.

    Args:
        path: The folder, in the working folder.
        run: Identity of the run.
        store: The run on the store; rank 0 holds its lease.
        first: Whether this rank is the first one of its machine, which looks after the folder.
    """

    def __init__(self, path: Path, run: str | None, store: RunStore, first: bool) -> None:
        super().__init__(path, run)
        self.store, self.first = store, first
        if first:
            path.mkdir(parents=True, exist_ok=True)
            sweep(path)

    def open(self) -> None:
        """Remove what killed writers left, in the store too.

        Raises:
            ValueError: All checkpoints that are left are damaged ones.
        """
        self.store.sweep()
        super().open()

    def steps(self) -> list[int]:
        """Steps with a checkpoint that counts, ascending; on rank 0."""
        return self.store.steps()

    def aside(self) -> list[str]:
        """Names of damaged checkpoints that were set aside; on rank 0."""
        return self.store.names_of_damaged()

    def fetch(self, step: int) -> None:
        """Bring what this machine lacks of a checkpoint; the other ranks of the machine wait for the first one.

        Raises:
            ValueError: It is damaged in the store; says which file.
            UnreachableError: The store does not answer.
        """
        if self.first:
            self.store.fetch(self._name(step), self.folder_of(step))

    def written(self, temporary: Path, files: Sequence[Path]) -> None:
        """Copy files of this rank to the store."""
        self.store.upload(self._name_of(temporary), _token(temporary), files)

    def check(self) -> None:
        """Raise `LeaseLost` where another training has taken RUN over; rank 0 knows."""
        self.store.check()

    def commit(self, temporary: Path, step: int, names: Collection[str]) -> None:
        """List a checkpoint that all ranks have copied to the store, with the figures up to it; then rename its folder.

        Raises:
            LeaseLost: Another training has taken RUN over.
            UnreachableError: The store does not answer.
        """
        name, token = self._name(step), _token(temporary)
        write_hashed(temporary / ABOUT, About(step=step, run=self.run).to_json())
        own = [file for file in temporary.iterdir() if file.name.startswith((".metadata", ABOUT))]
        self.store.upload(name, token, own)
        self.store.push_file("metrics.jsonl")
        self.store.commit(name, token, {*names, ABOUT, *(file.name for file in own)})
        self.settle(temporary, step)
        self._name_last(step)
        self.store.push_soon()

    def settle(self, temporary: Path, step: int) -> None:
        """Give this machine's part of a checkpoint that counts its name, where rank 0 has not done so."""
        if self.first and temporary.is_dir():
            target = self.folder_of(step)
            if target.exists():
                super().remove(step)
            temporary.rename(target)
            sync(self.path)

    def remove(self, step: int) -> None:
        """Remove a checkpoint, in the store and here."""
        self.store.remove(self._name(step))
        if self.folder_of(step).exists():
            super().remove(step)

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint in the store, so that it counts no more, and is not removed."""
        there = set(self.store.names_of_damaged())
        name = f"{CHECKPOINTS}/{DAMAGED}{folder_name(step)}"
        names = (f"{name}{f'-{number}' if number else ''}" for number in range(1 << 20))
        target = next(name for name in names if name not in there)
        self.store.rename(self._name(step), target)
        if self.folder_of(step).exists():
            super().remove(step)
        if steps := self.steps():
            self._name_last(steps[-1])
        return self.path / target.rpartition("/")[2]

    def _name(self, step: int) -> str:
        return f"{CHECKPOINTS}/{folder_name(step)}"

    def _name_of(self, temporary: Path) -> str:
        return f"{CHECKPOINTS}/{temporary.name.removeprefix('.').partition('.')[0]}"


def _token(temporary: Path) -> str:
    """Token in the name of a temporary folder, equal on every rank."""
    return temporary.name.rpartition("-")[2]
