"""Training of Lmk2Video, stage 1: single frames from a reference portrait and landmarks."""

from train.stage1.recipes import RECIPES
from train.stage1.task import Stage1Config as Config
from train.stage1.task import Stage1Task as make

__all__ = ["RECIPES", "Config", "make"]
