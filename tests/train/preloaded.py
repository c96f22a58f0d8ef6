"""What a training imports, imported ahead; and the toy task, registered."""

import torch._dynamo

import train.__main__
import train.loop
import train.overview
import train.task_command
import train.torchrun
import train.worker
from tests.train import toy_task
from train.recipe import TASKS

TASKS["toy"] = toy_task.__name__

__all__ = ["torch", "train"]
