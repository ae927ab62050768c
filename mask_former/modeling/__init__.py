"""All that has weights or gradients. Importing the package fills Detectron2's registries."""

from . import swin as swin
