"""A denoiser call in two parts: the first, before frames interact, serves any windows and both halves of guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from talkinghead.models.lmk2video.denoiser import Begun, Condition, Denoiser
from tests.support.lmk2video_networks import draw, inputs, rows, small_denoiser

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def _conditions(given: dict[str, Any]) -> list[Condition]:
    return [Condition(torch.zeros_like(given["token"]), None), Condition(given["token"], given["reference"])]


def _flops(run: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("motion", [False, True])
def test_equals_a_whole_call_under_every_condition(motion: bool, fold: bool) -> None:
    model, given = small_denoiser(motion=motion).eval(), inputs()
    time, pose = given["timestep"], given["pose"]
    with torch.no_grad():
        parts = model.begin(given["latents"], time, _conditions(given), pose=pose, fold=fold)
        for begun, (token, reference) in zip(parts, _conditions(given), strict=True):
            want = model(given["latents"], time, token, reference=reference, pose=pose, fold=fold)
            found = model(begun, time, token, reference=reference, pose=pose, fold=fold)
            torch.testing.assert_close(found, want, **CLOSE)
    assert parts[0].state is parts[1].state


@pytest.mark.parametrize("settings", [{"attention_levels": (False, True, True)}, {"layers_per_block": 2}])
def test_levels_of_another_kind(settings: dict[str, Any]) -> None:
    model = small_denoiser(motion=True, **settings).eval()
    latents, token = draw(1, 3, 4, 8, 8), draw(1, 1, 12)
    with torch.no_grad():
        (begun,) = model.begin(latents, 7, [Condition(token, None)])
        torch.testing.assert_close(model(begun, 7, token), model(latents, 7, token), **CLOSE)


def _cut(begun: Begun, frames: slice) -> Begun:
    return Begun(*(part[:, frames] for part in begun))


def _joined(parts: list[Begun]) -> Begun:
    return Begun(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))


def test_overlapping_windows_share_what_was_begun_in_any_company() -> None:
    """Frames begun one or two at a time and then joined equal what each window begins for itself."""
    model = small_denoiser(motion=True).eval()
    given = rows(inputs(2, 6), slice(1))
    condition = Condition(given["token"], model.project_reference(given["reference"]))
    time, pose = given["timestep"], given["pose"]

    def begin(frames: slice) -> Begun:
        features = [feature[:, frames] for feature in pose]
        return model.begin(given["latents"][:, frames], time, [condition], pose=features, fold=True)[0]

    with torch.no_grad():
        blocks = [begin(slice(0, 2)), begin(slice(2, 4)), begin(slice(4, 5)), begin(slice(5, 6))]
        for window, begun in ((slice(0, 4), _joined(blocks[:2])), (slice(2, 6), _joined(blocks[1:]))):
            features = [feature[:, window] for feature in pose]
            reference = condition.reference
            want = model(given["latents"][:, window], time, condition.token, reference=reference, pose=features)
            found = model(begun, time, condition.token, reference=reference, pose=features, fold=True)
            torch.testing.assert_close(found, want, **CLOSE)
            torch.testing.assert_close(
                _cut(begin(window), slice(2, 4)).hidden, _cut(begun, slice(2, 4)).hidden, **CLOSE
            )


def test_the_parts_together_do_no_more_than_a_call_and_share_the_rest() -> None:
    model = small_denoiser(motion=True).eval()
    given = inputs(1)
    conditions, time, pose = _conditions(given), given["timestep"], given["pose"]

    def call(latents: Tensor | Begun, condition: Condition) -> Tensor:
        return model(latents, time, condition.token, reference=condition.reference, pose=pose, fold=True)

    with torch.no_grad():
        parts = model.begin(given["latents"], time, conditions, pose=pose, fold=True)
    begin = _flops(lambda: model.begin(given["latents"], time, conditions, pose=pose, fold=True))
    alone = _flops(lambda: model.begin(given["latents"], time, conditions[:1], pose=pose, fold=True))
    whole = _flops(lambda: [call(given["latents"], condition) for condition in conditions])
    rest = _flops(lambda: [call(begun, condition) for begun, condition in zip(parts, conditions, strict=True)])
    opening = _flops(lambda: _open(model, given))
    # Each of these calls embeds the timestep; the part that both halves share is computed once, not twice.
    assert whole - rest == (begin - _time_flops(model)) + (opening - _time_flops(model))
    assert begin < 2 * alone


def _open(model: Denoiser, given: dict[str, Any]) -> None:
    """Part of a call that both halves of guidance share."""
    frames = given["latents"].flatten(0, 1)
    time = model.time_embedding(model.time_proj(given["timestep"])).expand(len(frames), -1)
    level: Any = model.down_blocks[0]
    level.resnets[0](model.conv_in(frames), time)


def _time_flops(model: Denoiser) -> int:
    return 2 * sum(layer.weight.numel() for layer in (model.time_embedding.linear_1, model.time_embedding.linear_2))


def test_wrong_conditions_are_named() -> None:
    model, given = small_denoiser(motion=True, motion_frames=3).eval(), inputs()
    latents, time = given["latents"], given["timestep"]
    for conditions, pose, text in (
        ([Condition(given["token"][:1], None)], None, "token must be"),
        ([Condition(given["token"], inputs(1)["reference"])], None, "1 references for 2 samples"),
        (_conditions(given), given["pose"][:2], "2 pose features for 3 levels"),
    ):
        with pytest.raises(ValueError, match=text):
            model.begin(latents, time, conditions, pose=pose)
    many = draw(2, 5, 4, 8, 12)
    with torch.no_grad():
        (begun,) = model.begin(many, time, [Condition(given["token"], None)])
        with pytest.raises(ValueError, match="5 frames at once, and the motion modules know 3"):
            model(begun, time, given["token"])
