"""Names, shapes, dtypes and sizes of the published models, held against what our configs build."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import mask_former.data
import mask_former.modeling  # noqa: F401  (with the data sets: fills the registries)
from mask_former.config import load_config

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = {
    file.stem.replace("__", "/"): file for file in sorted((ROOT / "tests" / "parameter_names").glob("*.txt"))
}

# Published counts of parameters, all trainable: whole model, backbone, head (None: not published).
COUNTS = {
    "ade20k-150/maskformer_R50_bs16_160k": (41_254_743, 23_454_912, 17_799_831),
    "ade20k-150/maskformer_R101_bs16_160k": (60_194_647, 42_394_816, None),
    "ade20k-150/maskformer_R101c_bs16_160k": (60_318_039, 42_518_208, None),
    "ade20k-150/swin/maskformer_swin_tiny_bs16_160k": (41_757_009, 27_520_698, None),
    "ade20k-150/swin/maskformer_swin_small_bs16_160k": (63_074_913, 48_838_602, None),
    "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640": (101_829_391, 86_880_376, None),
    "ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640": (211_575_627, 195_201_204, None),
    "ade20k-150/per_pixel_baseline_R50_bs16_160k": (31_033_942, None, 7_579_030),
    "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k": (41_228_736, None, 17_773_824),
    "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k": (45_016_407, None, 21_561_495),
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k": (45_012_038, None, 21_557_126),
    "coco-panoptic/maskformer_panoptic_R101_bs64_554k": (63_951_942, None, 21_557_126),
    "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k": (41_752_640, None, None),
    "coco-panoptic/swin/maskformer_panoptic_swin_base_IN21k_384_bs64_554k": (101_825_022, None, None),
    "coco-panoptic/swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k": (211_571_258, None, None),
    "ade20k-full-847/maskformer_R50_bs16_200k": (41_433_872, None, None),
    "ade20k-full-847/per_pixel_baseline_R50_bs16_200k": (31_213_071, None, None),
    "ade20k-full-847/per_pixel_baseline_plus_R50_bs16_200k": (41_407_168, None, None),
    "coco-stuff-10k-171/maskformer_R50_bs32_60k": (41_260_140, None, None),
    "mapillary-vistas-65/maskformer_R50_bs16_300k": (41_232_898, None, None),
    "cityscapes-19/maskformer_R101_bs16_90k": (60_160_980, None, None),
    "cityscapes-19/maskformer_R101c_bs16_90k": (60_284_372, None, None),
}


def build(name: str) -> nn.Module:
    """Build the model of a config without memory for its tensors."""
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def contract(file: Path) -> dict[str, str]:
    """Entries of a published state dict: name -> "shape dtype"."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def test_there_are_twelve_contracts_and_all_are_read():
    assert len(CONTRACTS) == 12
    assert all(len(contract(file)) > 250 for file in CONTRACTS.values())


@pytest.mark.parametrize("name", CONTRACTS)
def test_names_shapes_and_types_are_the_published_ones(name: str):
    state = build(name).state_dict()
    ours = {
        key: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for key, tensor in state.items()
    }
    published = contract(CONTRACTS[name])
    published.pop("criterion.empty_weight", None)  # the criterion makes it from NO_OBJECT_WEIGHT
    assert ours == published


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_parameters_are_the_published_ones(name: str):
    model = build(name)
    whole, backbone, head = COUNTS[name]
    assert size(model) == whole
    assert size(model) == sum(parameter.numel() for parameter in model.parameters())
    assert size(model.backbone) + size(model.sem_seg_head) == whole
    if backbone is not None:
        assert size(model.backbone) == backbone
    if head is not None:
        assert size(model.sem_seg_head) == head
