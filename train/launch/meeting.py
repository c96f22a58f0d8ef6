"""Meeting of the ranks of one start: where they find each other, and the secret by which they know each other.

What PyTorch opens between ranks asks for no password. A gloo port takes whoever connects first and names the small
number of the rank that is awaited there; a TCPStore lets everybody who reaches it read and write. On top of that, ranks
exchange objects as pickles (`broadcast_object_list`, `all_gather_object`, and those of a distributed checkpoint), and a
pickle runs code where it is read. Three things keep others out, where our own launcher starts the ranks:

- On one machine the ranks find each other through a file in a folder that is closed to other users: no TCPStore.
- There, they listen on the loopback interface only, so no other machine reaches them.
- The objects are signed with a secret of this start, and what bears no such signature is not unpickled.

What remains on one machine: another user of it may connect to a gloo port in the moment between its opening and the
arrival of the rank that is awaited. The training then ends with an error or, if they speak gloo well, goes on with
numbers of their making; their code does not run. Under a torchrun of the user's own there is no secret, and torchrun
itself unpickles what it finds in its TCPStore.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hmac
import io
import os
import pickle
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train.launch.failure import StrangerError
from train.trainer.port import MEETING_VARIABLE

_KEY, _STORE = "key", "store"
_KEY_BYTES = 32
_SIGNATURE_BYTES = 32  # of SHA-256
_SIOCGIFADDR = 0x8915  # linux/sockios.h: asks for the IPv4 address of an interface


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Place where the ranks of one start find each other, and the secret by which they know each other."""

    key: bytes = field(repr=False)
    """Secret with which they sign the objects that they exchange."""
    store: Path | None = None
    """File through which the ranks of one machine find each other, in a folder that is closed to other users. None: the
    launcher has made the process group already."""


def open_meeting(folder: Path) -> None:
    """Prepare an empty folder, closed to other users, for one start of the ranks of this machine."""
    assert folder.stat().st_mode & 0o077 == 0, f"{folder} is open to others"
    (folder / _KEY).write_bytes(secrets.token_bytes(_KEY_BYTES))


def meeting_in(folder: Path) -> Meeting:
    """Meeting in a folder that `open_meeting` has prepared."""
    return Meeting(key=(folder / _KEY).read_bytes(), store=folder / _STORE)


def meeting_of_environment() -> Meeting | None:
    """Meeting that our launcher has prepared for this rank; None where another launcher started it."""
    folder = os.environ.get(MEETING_VARIABLE)
    return meeting_in(Path(folder)) if folder else None


def store_of(meeting: Meeting, world: int) -> dist.FileStore | None:  # pyright: ignore[reportPrivateImportUsage]
    """Store through which the ranks of one machine find each other, None where the launcher brings one.

    A FileStore holds addresses and counters. PyTorch keeps no objects in a store, and unpickles nothing out of it.
    """
    if meeting.store is None:
        return None
    return dist.FileStore(str(meeting.store), world)  # pyright: ignore[reportPrivateImportUsage]


def loopback_settings() -> dict[str, str]:
    """Environment variables of ranks that only talk to others on this machine: gloo and NCCL listen on loopback."""
    name = loopback_interface()
    # NCCL takes a name as the beginning of one, unless there is a "=" in front of it.
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def loopback_interface() -> str:
    """Name of the network interface that 127.0.0.1 stands on, `lo` on most machines.

    Raises:
        ValueError: There is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == "127.0.0.1":
                return name
    raise ValueError("no network interface has the address 127.0.0.1, over which ranks talk: bring `lo` up")


@contextlib.contextmanager
def signed_objects(key: bytes) -> Iterator[None]:
    """Context in which collectives sign the objects that they send, and refuse objects without that signature.

    A signature says that a rank of this start made the object, not when, nor for which call: whoever sat between two
    ranks could exchange their messages. That may break a training, but every object is one of our own.

    Args:
        key: Secret of all ranks.
    """
    # Private names of PyTorch, by which all collectives of objects read and write; a test notices when they change.
    before = distributed_c10d._pickler, distributed_c10d._unpickler
    distributed_c10d._pickler = functools.partial(_SigningPickler, key)
    distributed_c10d._unpickler = functools.partial(_CheckingUnpickler, key)
    try:
        yield
    finally:
        distributed_c10d._pickler, distributed_c10d._unpickler = before


class _SigningPickler(pickle.Pickler):
    """Pickler that writes a signature, then the pickle."""

    def __init__(self, key: bytes, file: io.BytesIO) -> None:
        self._key, self._file, self._content = key, file, io.BytesIO()
        super().__init__(self._content)

    def dump(self, obj: Any, /) -> None:
        super().dump(obj)
        content = self._content.getvalue()
        self._file.write(hmac.digest(self._key, content, "sha256") + content)


class _CheckingUnpickler(pickle.Unpickler):
    """Unpickler that reads what `_SigningPickler` wrote, and nothing else.

    Raises:
        StrangerError: The signature is not that of the key.
    """

    def __init__(self, key: bytes, file: io.BytesIO) -> None:
        signed = file.read()
        signature, content = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, hmac.digest(key, content, "sha256")):
            raise StrangerError(
                "an object came that no rank has signed: another program talks to the ports of this training"
            )
        super().__init__(io.BytesIO(content))
