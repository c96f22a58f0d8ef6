"""Training of Audio2Pose: speech → head pose, relative to the head's rest pose."""

from train.audio2pose.recipes import RECIPES
from train.audio2pose.task import Audio2PoseConfig as Config
from train.audio2pose.task import Audio2PoseTask as make

__all__ = ["RECIPES", "Config", "make"]
