"""Training of Lmk2Video, stage 2: motion modules on windows of frames, everything else frozen."""

from train.stage2.recipes import RECIPES
from train.stage2.task import Stage2Config as Config
from train.stage2.task import Stage2Task as make

__all__ = ["RECIPES", "Config", "make"]
