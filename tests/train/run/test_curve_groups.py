"""Which figures share a plot, and under which heading."""

from __future__ import annotations

import numpy as np

from train.run.curve_groups import groups_of
from train.run.metrics import Curve
from train.trainer.throughput import TIMES

CURVE = Curve(steps=np.array([1]), values=np.array([1.0]))


def grouped(*names: str) -> dict[str, dict[str, list[str]]]:
    return {
        group.title: {plot.title: list(plot.curves) for plot in group.plots}
        for group in groups_of(dict.fromkeys(names, CURVE))
    }


def test_related_figures_share_a_plot() -> None:
    found = grouped(
        "loss",
        "held_out/loss",
        "velocity_mse",
        "loss/t000-249",
        "loss/t250-499",
        "loss/without_both",
        "loss/with_all",
        "held_out/velocity_mse",
        "held_out/loss/t000-249",
        "network_gradient_norm/denoiser",
        "network_gradient_norm/pose_guider",
        "network_update_ratio/denoiser",
        "gradient_norm",
        "gradient_norm/head",
        "learning_rate",
        "critic/loss",
        "critic/gradient_norm",
        "skipped",
        "whatever",
    )
    assert found == {
        "Losses": {
            "velocity mse": ["velocity_mse"],
            "loss by timestep": ["t000-249", "t250-499"],
            "loss by kind of sample": ["without both", "with all"],
            "critic/loss": ["critic/loss"],
            "critic/gradient norm": ["critic/gradient_norm"],
            "whatever": ["whatever"],
        },
        "Held-out clips": {"velocity mse": ["velocity_mse"], "loss by timestep": ["t000-249"]},
        "Networks": {
            "gradient norm by network": ["denoiser", "pose_guider"],
            "update over weights by network": ["denoiser"],
        },
        "Optimisation": {
            "gradient norm": ["gradient_norm"],
            "gradient norm/head": ["gradient_norm/head"],
            "learning rate": ["learning_rate"],
        },
    }


def test_all_figures_of_the_machine_are_under_one_heading() -> None:
    found = grouped(*TIMES, "store_retries", "store_wait_s")
    assert list(found) == ["Time and memory"]
    assert found["Time and memory"]["share of the time"] == [
        "waiting for data",
        "copies to the device",
        "exchange between ranks",
        "checkpoints",
    ]
    assert grouped() == {}
