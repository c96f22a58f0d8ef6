"""Training of Audio2Mesh: speech → mesh offsets from the speaker's neutral mesh."""

from train.audio2mesh.recipes import RECIPES
from train.audio2mesh.task import Audio2MeshConfig as Config
from train.audio2mesh.task import Audio2MeshTask as make

__all__ = ["RECIPES", "Config", "make"]
