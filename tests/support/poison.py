"""Job functions that misbehave for real, for the tests of the executor. Run by name: `tests.support.poison:…`."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from orchestration.units.frame_reports import report_frames
from orchestration.units.output_tar import OutputTar
from orchestration.units.records import RejectedPiece
from orchestration.units.unit import Output, Unit
from talkinghead.files.storage import Storage
from talkinghead.schema import Rejection


def behave(storage: Storage, unit: Unit) -> Output:
    """Do what the payload says; `runs` counts how often the unit was started."""
    payload = unit.payload
    with Path(payload["runs"]).open("a") as runs:
        runs.write(unit.key + "\n")
    time.sleep(payload.get("sleep", 0.0))
    match payload["behaviour"]:
        case "sample":
            return Output(contents=[(unit.key, 3, {"txt": unit.key.encode() * 100})])
        case "frames":  # reports one after the other until somebody has seen it
            if (marker := payload.get("crash_first")) and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            deadline, frames = time.monotonic() + 120, 0
            while not Path(payload["seen"]).exists() and time.monotonic() < deadline:
                report_frames(frames := min(frames + 1, unit.frames - 1))
                time.sleep(0.01)
            return Output(contents=[(unit.key, unit.frames, {"txt": unit.key.encode()})])
        case "threads":
            import cv2

            from orchestration.jobs.worker import pin_threads

            pin_threads()
            told = f"{cv2.getNumThreads()} {os.environ['OMP_NUM_THREADS']} {os.getpid()}"
            return Output(contents=[(unit.key, 1, {"txt": told.encode()})])
        case "gpus":
            return Output(contents=[(unit.key, 1, {"txt": os.environ.get("CUDA_VISIBLE_DEVICES", "all").encode()})])
        case "reject":
            rejection = Rejection(reason="no_face", score=0.25, detail="a quarter of the frames")
            return Output(rejected=[RejectedPiece(key=unit.key, rejection=rejection)])
        case "error":
            raise ValueError("clip.mp4 is not a video")
        case "read":
            return Output(contents=[(unit.key, 1, {"txt": Path(payload["file"]).read_bytes()})])
        case "explain":
            try:
                Path(payload["file"]).read_bytes()
            except OSError as error:
                raise ValueError(f"{payload['file']} cannot be read") from error
        case "segfault":
            ctypes.string_at(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":  # in C, holding the interpreter lock, as a decoder that never returns does
            ctypes.PyDLL(None).sleep(1000)
        case "memory":
            hoard = []
            while True:
                hoard.append(bytearray(256 << 20))
        case "crash_once":
            marker = Path(payload["marker"])
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return Output(contents=[(unit.key, 3, {"txt": b"second time lucky"})])
    raise AssertionError(payload["behaviour"])


def hundred_pieces(storage: Storage, unit: Unit) -> Output:
    """A hundred samples of 5 MB, each made when the one before it is stored."""
    with OutputTar(storage, unit.job, unit.key, unit.pkey) as tar:
        for number in range(100):
            tar.add(f"{unit.key}-{number:02d}", 3000, {"bin": bytes([number]) * 5_000_000})
    return Output(stored=tar.record())
