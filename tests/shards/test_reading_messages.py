"""Batches and errors on their way from one process to another."""

from __future__ import annotations

import errno
import os
import pickle
from multiprocessing import Pipe

import pytest
import torch
from av.error import InvalidDataError

from shards.reading_messages import Signs, packed, portable, receive, restored, send, unpacked
from talkinghead.runtime.errors import UnreachableError, is_machine_error

BATCH = {
    "keys": ["one", "two"],
    "video": torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5).permute(0, 2, 1, 3),
    "moments": torch.randn(2, 7).half(),
    "loss": torch.tensor(float("nan")),
    "mask": torch.tensor([[True, False, True]]),
    "empty": torch.empty(2, 0, 3),
    "slot": torch.tensor([5, 1 << 40]),
    "replaced": [("a", 1)],
}


def test_a_batch_comes_as_it_went() -> None:
    descriptor, layout = packed(BATCH)
    assert len(pickle.dumps(layout)) < 1500  # no tensor travels in the message
    found = unpacked(descriptor, layout)
    with pytest.raises(OSError):
        os.fstat(descriptor)
    assert list(found) == list(BATCH)
    for name, value in BATCH.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            assert torch.equal(torch.nan_to_num(found[name].float()), torch.nan_to_num(value.float())), name
        else:
            assert found[name] == value
    found["slot"] += 1  # it can be changed, and belongs to nobody else
    assert found["slot"].tolist() == [6, (1 << 40) + 1]


def test_a_batch_without_tensors() -> None:
    assert unpacked(*packed({"keys": []})) == {"keys": []}


def chained() -> ValueError:
    try:
        try:
            raise OSError(errno.EIO, "the disk fails", "shard.tar")
        except OSError as error:
            raise ValueError("the clip is damaged") from error
    except ValueError as error:
        return error


def test_an_error_keeps_what_explains_it() -> None:
    sent = pickle.loads(pickle.dumps(portable(chained())))  # noqa: S301  our own bytes
    error = restored(sent)
    assert type(error) is ValueError and str(error) == "the clip is damaged"
    assert isinstance(error.__cause__, OSError) and error.__cause__.filename == "shard.tar"
    assert is_machine_error(error)
    assert "in chained" in str(error.__cause__.__cause__)  # where it was raised
    unreachable = restored(portable(UnreachableError("cannot reach s3://clips")))
    assert isinstance(unreachable, UnreachableError) and str(unreachable) == "cannot reach s3://clips"


def test_an_error_that_cannot_be_pickled_says_the_same() -> None:
    class Private(Exception):
        pass

    error = restored(portable(Private("it went wrong")))
    assert type(error) is RuntimeError and str(error) == "Private: it went wrong"
    damaged = restored(portable(InvalidDataError(1094995529, "Invalid data found")))
    assert "Invalid data" in str(damaged) and not is_machine_error(damaged)


def test_messages_of_any_length_and_the_end() -> None:
    ours, theirs = Pipe()
    send(ours, {"number": 1})
    assert receive(theirs) == {"number": 1}
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def test_signs_are_seen_by_whoever_shares_them() -> None:
    descriptor = os.memfd_create("signs")
    one, two = Signs(descriptor, 3, at_once=2), Signs(descriptor, 3, at_once=2)
    os.close(descriptor)
    one.begin(2, 7)
    one.at(2, 1, 4)
    one.at(2, 0, 5)
    one.give(2)
    assert two.number(2) == 3 and two.place(2) == (7, [4, 5]) and two.number(1) == 0
    one.done(2, 1)
    assert two.place(2) == (7, [5]) and two.place(1) == (0, [])
    one.begin(2, 8)
    assert two.place(2) == (8, [])
