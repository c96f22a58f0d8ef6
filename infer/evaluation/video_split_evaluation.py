"""`infer evaluate --lmk2video`: evaluation of a video pipeline on the clips of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from infer.evaluation.comparison import Comparison
from infer.evaluation.driven_clip import COLUMNS, DRIVER_COLUMNS, DrivenClip, read_cross_driven, read_driven_clips
from infer.evaluation.evaluate_request import EvaluateRequest
from infer.evaluation.evaluation_result import Evaluation
from infer.evaluation.video_evaluation import Sampling, evaluate_pipeline
from infer.metrics.face_reading import face_engine
from infer.metrics.learned_metrics import LearnedModels
from infer.metrics.scripted_model import ScriptLimits
from infer.weights.pipeline_weights import PipelinePlace, load_pipeline
from shards.reader import ShardReader
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress


def evaluate_video_split(place: PipelinePlace, request: EvaluateRequest) -> Evaluation:
    """Evaluation of a video pipeline on clips of a split; an output folder also gets contact sheets and videos.

    Args:
        place: Place of the weights.
        request: Clips, settings of the sampling, learned metrics and output folder.

    Raises:
        ValueError: The weights or a model cannot be loaded, the size does not fit, or the split has no clip that shows
            a face.
        OSError: There is no data set.
    """
    # Open the clips; another clip's motion needs more annotation columns than a clip's own landmarks.
    own = request.drive == "own"
    reader = ShardReader(
        request.data, version=request.version, split=request.split, columns=COLUMNS if own else DRIVER_COLUMNS
    )
    if len(reader) < (1 if own else 2):
        wanted = "no clip that shows a face" if own else "fewer than two clips that show a face"
        raise ValueError(f"the split {request.split!r} of {request.data} has {wanted}")
    # Load what measures first: a wrong file is reported before the large weights are loaded.
    models = LearnedModels(
        identity=request.identity_model,
        sync=request.sync_model,
        fid=request.fid_model,
        fvd=request.fvd_model,
        limits=ScriptLimits(memory=request.metric_memory, seconds=request.metric_seconds),
    )
    with models.loaded() as networks, Progress() as progress:
        engine = face_engine()
        # Load the pipeline, generate and measure clip by clip.
        device = choose_device(request.device)
        progress("load weights", 0, 1)
        pipeline, about = load_pipeline(place, device=device)
        pipeline.set_progress_bar_config(disable=True)
        evaluation = evaluate_pipeline(
            pipeline,
            _clips(reader, request, place),
            sampling=Sampling(steps=request.steps, guidance=request.guidance, seed=request.seed),
            engine=engine,
            networks=networks,
            on_clip=None if request.output is None else Comparison(request.output),
            progress=progress,
        )
    weights = about["pipeline"]
    return replace(evaluation, notes=(*evaluation.notes, f"Weights: {weights['origin']}, sha256 {weights['sha256']}."))


def _clips(reader: ShardReader, request: EvaluateRequest, place: PipelinePlace) -> Iterator[DrivenClip]:
    width, height = request.width or place.size[0], request.height or place.size[1]
    count = min(len(reader), request.limit or len(reader))
    if request.drive == "own":
        yield from read_driven_clips((reader[number] for number in range(count)), width, height, frames=request.frames)
        return
    for number in range(count):
        driver = reader[(number + 1) % len(reader)]  # the first clip drives the last
        yield read_cross_driven(reader[number], driver, width, height, frames=request.frames)
