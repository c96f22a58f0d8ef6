"""Imports of a training, made ahead, and the toy tasks, registered."""

import torch._dynamo

import train.__main__
import train.commands
import train.launch.ranks
import train.launch.torchrun
import train.launch.worker
import train.run.overview
import train.trainer.loop
from tests.support import toy_adversary, toy_task
from train.recipe import TASKS

TASKS["toy"] = toy_task.__name__
TASKS["toy-adversary"] = toy_adversary.__name__

__all__ = ["torch", "train"]
