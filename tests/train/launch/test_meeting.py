"""What the ranks of one start know each other by."""

from __future__ import annotations

import contextlib
import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from tests.support.training import Ranks
from train.launch.failure import PeerError
from train.launch.meeting import loopback_interface, loopback_settings, meeting_in, open_meeting, signed_objects

KEY = b"k" * 32


class Stranger:
    """Object whose pickle makes a file where it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def receive(marker: Path, keys: list[bytes | None], collective: str) -> str:
    """Take part in a collective in which rank 0 sends a `Stranger`, each rank with its key."""
    rank = dist.get_rank()
    key = keys[rank]
    sent: Any = Stranger(marker) if rank == 0 else "mine"
    with contextlib.nullcontext() if key is None else signed_objects(key):
        try:
            if collective == "broadcast":
                dist.broadcast_object_list([sent], src=0)
            else:
                dist.scatter_object_list([None], [None, sent] if rank == 0 else None, src=0)
        except PeerError as error:
            return str(error)
    return "taken"


@pytest.mark.parametrize("collective", ["broadcast", "scatter"])
@pytest.mark.parametrize("theirs", [None, b"another key"])
def test_what_no_rank_has_signed_is_not_unpickled(
    ranks: Ranks, tmp_path: Path, collective: str, theirs: bytes | None
) -> None:
    """A gloo port takes whoever connects first, so a message may be a stranger's."""
    _, said = ranks.run(receive, tmp_path / "marker", [theirs, KEY], collective)
    assert "no rank has signed" in said and not (tmp_path / "marker").exists()
    # The same without a key shows that the object is one that would have run.
    ranks.run(receive, tmp_path / "marker", [None, None], collective)
    assert (tmp_path / "marker").exists()


def exchange() -> tuple[Any, Any]:
    """Objects of other ranks, signed."""
    mine = {"rank": dist.get_rank(), "large": [float(number) for number in range(50_000)]}
    given: list[Any] = [mine]
    everybody: list[Any] = [None, None]
    with signed_objects(KEY):
        dist.broadcast_object_list(given, src=0)
        dist.all_gather_object(everybody, mine)
    return given[0]["rank"], [len(one["large"]) + one["rank"] for one in everybody]


def test_objects_of_the_ranks_arrive(ranks: Ranks) -> None:
    assert ranks.run(exchange) == [(0, [50_000, 50_001])] * 2


def test_all_objects_of_pytorch_go_through_the_two_names_that_sign() -> None:
    """Private names: a release that reads or writes objects in another way is noticed here."""
    before = distributed_c10d._pickler, distributed_c10d._unpickler
    with signed_objects(KEY):
        assert distributed_c10d._pickler is not before[0] and distributed_c10d._unpickler is not before[1]
    assert (distributed_c10d._pickler, distributed_c10d._unpickler) == before
    text = inspect.getsource(distributed_c10d)
    assert text.count("_pickler(f).dump(") == text.count("_unpickler(io.BytesIO(buf)).load()") == 1
    assert "pickle.load" not in text and "pickle.dump" not in text


def test_a_meeting_is_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "meeting"
    folder.mkdir(mode=0o700)
    open_meeting(folder)
    meeting = meeting_in(folder)
    assert len(meeting.key) == 32 and meeting.store is not None and meeting.store.parent == folder
    assert str(meeting.key) not in repr(meeting)
    folder.chmod(0o755)
    with pytest.raises(AssertionError, match="open to others"):
        open_meeting(folder)


def test_ranks_of_one_machine_listen_on_loopback() -> None:
    name = loopback_interface()
    assert name in {interface for _, interface in socket.if_nameindex()}
    assert loopback_settings() == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
