"""Rows about the speech-driven models at their published size: decoding with kept keys and values, and real time.

Weights are random; their values do not change the work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from orchestration.bench.row import Row
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoding import decode, redecode
from talkinghead.models.speech.encoder import normalise
from talkinghead.models.speech.weights import encoder_settings
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from talkinghead.timebase import SAMPLE_RATE

DECODED_FRAMES = 300
SPEECH_S = 30
"""Length of the speech in seconds."""
CONTEXT = 125
"""Frames that the pose decoder attends to: 5 s."""
WIDTH = 512
"""Width of the published decoder."""


def speech_rows(repeats: int) -> list[Row]:
    """Measure the decoding of 300 poses, and the time that a second of speech takes in either model."""
    from transformers import Wav2Vec2Config

    # The whole way from speech to offsets and poses, on all cores, as the pipeline does it.
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    encoder = encoder_settings(Wav2Vec2Config())
    mesh = Audio2Mesh(wav2vec=encoder).eval()
    pose = Audio2Pose(wav2vec=encoder, context=CONTEXT, position_period=25, memory_window=12).eval()
    pipeline = AudioToLandmarks(mesh, pose)
    speech = normalise(torch.randn(SPEECH_S * SAMPLE_RATE)).numpy()
    # Decoding alone: the published attention, over the whole prefix. A short speech encoder, since it takes no part.
    memory = torch.randn(1, DECODED_FRAMES, WIDTH)
    published = Audio2Pose(
        wav2vec=encoder_settings(Wav2Vec2Config(num_hidden_layers=1)),
        memory_attention="diagonal",
        context=None,
        position_period=600,
    ).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the pipeline decodes: a step is too small to share
    decoded = 1000 * _seconds(lambda: decode(published, memory, 0), repeats)
    decoded_again = 1000 * _seconds(lambda: redecode(published, memory, 0), 1)
    torch.set_num_threads(threads)
    return [
        Row(
            name="pose_decoding",
            ours=decoded,
            baseline=decoded_again,
            unit=f"ms for {DECODED_FRAMES} frames",
            better="lower",
            goal=1 / 20,
            note="Audio2Pose decoder of the published size and attention; ours keeps keys and values, the baseline"
            " decodes the whole prefix again for each frame, as published; 1 thread each",
        ),
        *(
            Row(
                name=f"speech_to_{name}",
                ours=_seconds(predict, repeats) / SPEECH_S,
                baseline=1.0,
                unit="s per s of speech",
                better="lower",
                goal=1.0,
                note=f"wav2vec2-base size, {SPEECH_S} s of speech, {torch.get_num_threads()} threads;"
                " the baseline is real time",
            )
            for name, predict in (
                ("mesh", lambda: pipeline.predict_offsets(speech)),
                ("pose", lambda: pipeline.predict_pose(speech)),
            )
        ),
    ]


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
