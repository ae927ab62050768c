"""Weights of which each one matters."""

import re

import torch
from torch import nn


def draw(model: nn.Module) -> None:
    """Draw what starts as zeros or ones, so that each tensor matters."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if re.search(r"running_var|norm\d?\.weight", name):
                tensor.uniform_(0.5, 1.5)
            elif re.search(r"running_mean|bias$", name):
                tensor.normal_(0, 0.2)
            elif "relative_position_bias_table" in name:
                tensor.normal_()
            elif re.search(r"(qkv|fc\d|attn\.proj|reduction)\.weight", name):
                tensor.normal_(0, tensor.shape[1] ** -0.5)
