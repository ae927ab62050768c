"""One training step of every published architecture: each parameter gets a gradient, and a sound one."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

import mask_former.data
import mask_former.modeling  # noqa: F401  (with the data sets: fills the registries)
from mask_former.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(
    str(file.relative_to(CONFIGS).with_suffix(""))
    for file in CONFIGS.rglob("*.yaml")
    if not {"shapes", "own-data"} & set(file.parts) and not file.stem.startswith("Base")
)
# Equal layers stand one behind the other, so that fewer of them run the same code: from the 18 blocks of
# Swin's third stage, from the 23 of ResNet-101's fourth (DEPTH 50 has 6 of the same), and from the layers of
# encoder and decoder. Which parameters get gradients does not depend on the widths of Swin either, nor on the
# number of classes.
SHORTER = ["MODEL.SWIN.DEPTHS", [2, 2, 2, 2], "MODEL.RESNETS.DEPTH", 50, "MODEL.MASK_FORMER.DEC_LAYERS", 3]
SHORTER += ["MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 3]]
# A block that stochastic depth leaves out for both pictures would get zeros.
SHORTER += ["MODEL.SWIN.DROP_PATH_RATE", 0.0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, "MODEL.DEVICE", "cpu"]


def config_of(name: str, *options: object) -> CfgNode:
    """Return a recipe's configuration, of a smaller model, on the CPU."""
    cfg = load_config(CONFIGS / f"{name}.yaml", [*SHORTER, *options])
    if cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS:
        cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2
    if cfg.MODEL.SEM_SEG_HEAD.NAME == "PerPixelBaselinePlusHead":
        cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 150
    cfg.MODEL.WEIGHTS, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = "", 255
    return cfg


# The recipes by their models, which many share; the first of each is tried.
MODELS: dict[str, list[str]] = {}
for recipe in RECIPES:
    MODELS.setdefault(config_of(recipe).MODEL.dump(), []).append(recipe)


def build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(11)
    return build_model(cfg).train()


def pictures() -> list[dict[str, object]]:
    """Two pictures of 64x64 with labels for both kinds of models."""
    batch = []
    for number in range(2):
        labels = torch.zeros(64, 64, dtype=torch.int64)
        labels[: 20 + 9 * number] = 3
        labels[:, 40:] = 7
        segments = Instances((64, 64))
        segments.gt_classes = torch.tensor([0, 3, 7])
        segments.gt_masks = torch.stack([labels == label for label in (0, 3, 7)])
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        batch.append({"image": image, "instances": segments, "sem_seg": labels})
    return batch


def backward(model: nn.Module) -> dict[str, torch.Tensor]:
    losses = model(pictures())
    sum(losses.values()).backward()
    return losses


def test_all_thirty_recipes_are_tried():
    assert len(RECIPES) == sum(map(len, MODELS.values())) == 30


@pytest.mark.parametrize("name", [names[0] for names in MODELS.values()])
def test_every_parameter_gets_a_finite_gradient(name: str):
    model = build(config_of(name))
    losses = backward(model)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    none = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert none == []
    broken = [key for key, parameter in model.named_parameters() if not parameter.grad.isfinite().all()]
    assert broken == []
    zero = {key for key, parameter in model.named_parameters() if not parameter.grad.any()}
    # Queries start as zeros and attention biases too, so the first self-attention sees and gives zeros.
    first = "sem_seg_head.predictor.transformer.decoder.layers.0."
    assert zero <= {
        first + key for key in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "norm1.weight")
    }


def test_what_the_config_freezes_gets_no_gradient():
    model = build(config_of("ade20k-150/maskformer_R50_bs16_160k", "MODEL.BACKBONE.FREEZE_AT", 2))
    backward(model)
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    frozen = {
        key for key, _ in model.named_parameters() if key.startswith(("backbone.stem", "backbone.res2"))
    }
    assert without == frozen
    assert frozen
