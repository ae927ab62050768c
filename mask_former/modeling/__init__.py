"""All that has weights or gradients. Importing the package fills Detectron2's registries."""

from . import build as build
from . import head as head
from . import mask_former as mask_former
from . import matcher as matcher
from . import per_pixel as per_pixel
from . import swin as swin
