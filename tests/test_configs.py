"""The published recipes: what each must say, typed here from the published tables, not from the YAML text."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import mask_former.data
import mask_former.modeling  # noqa: F401  (with the data sets: fills the registries)
from mask_former.config import load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def sizes(side: int, first: int, last: int) -> tuple[int, ...]:
    """Tenths of a side, from first to last, rounded down."""
    return tuple(side * tenths // 10 for tenths in range(first, last + 1))


# Published tables ----------------------------------------------------------------------------------------

COMMON = {
    "VERSION": 2,
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.AUG.ENABLED": False,
    "DATALOADER.NUM_WORKERS": 4,
}
SEMANTIC = {
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.WARMUP_FACTOR": 1.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.COLOR_AUG_SSD": True,
    "TEST.EVAL_PERIOD": 5000,
}
DETECTRON2_TTA = {
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    "TEST.AUG.MAX_SIZE": 4000,
}


def recipe(
    data: tuple[str, str],
    iterations: int,
    train: tuple[tuple[int, ...], int],
    test: tuple[int, int],
    crop: list[int],
    pad: int,
) -> dict[str, object]:
    return {
        "DATASETS.TRAIN": (data[0],),
        "DATASETS.TEST": (data[1],),
        "SOLVER.MAX_ITER": iterations,
        "INPUT.MIN_SIZE_TRAIN": train[0],
        "INPUT.MAX_SIZE_TRAIN": train[1],
        "INPUT.MIN_SIZE_TEST": test[0],
        "INPUT.MAX_SIZE_TEST": test[1],
        "INPUT.CROP.SIZE": crop,
        "INPUT.SIZE_DIVISIBILITY": pad,
    }


def augmented(min_sizes: tuple[int, ...], max_size: int) -> dict[str, object]:
    return {"TEST.AUG.MIN_SIZES": min_sizes, "TEST.AUG.MAX_SIZE": max_size}


ADE = ("ade20k_sem_seg_train", "ade20k_sem_seg_val")
FULL = ("ade20k_full_sem_seg_train", "ade20k_full_sem_seg_val")
CITY = ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val")
STUFF = ("coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg")
VISTAS = ("mapillary_vistas_sem_seg_train", "mapillary_vistas_sem_seg_val")
COCO = ("coco_2017_train_panoptic", "coco_2017_val_panoptic")
ADE_PANOPTIC = ("ade20k_panoptic_train", "ade20k_panoptic_val")

RECIPE_512 = ((sizes(512, 5, 20), 2048), (512, 2048), [512, 512], 512)
RECIPE_640 = ((sizes(640, 5, 20), 2560), (640, 2560), [640, 640], 640)
TTA_512 = augmented((256, 384, 512, 640, 768, 896), 3584)
TTA_640 = augmented((320, 480, 640, 800, 960, 1120), 4480)

BASES: dict[str, dict[str, object]] = {
    "ade20k-150/Base-ADE20K-150": COMMON | SEMANTIC | recipe(ADE, 160_000, *RECIPE_512) | TTA_512,
    "ade20k-full-847/Base-ADE20KFull-847": (
        COMMON | SEMANTIC | recipe(FULL, 200_000, *RECIPE_512) | DETECTRON2_TTA
    ),
    "cityscapes-19/Base-Cityscapes-19": (
        COMMON
        | SEMANTIC
        | recipe(CITY, 90_000, (sizes(1024, 5, 20), 4096), (1024, 2048), [512, 1024], -1)
        | augmented((512, 768, 1024, 1280, 1536, 1792), 4096)
    ),
    "coco-stuff-10k-171/Base-COCOStuff10K-171": (
        COMMON
        | SEMANTIC
        | recipe(STUFF, 60_000, (sizes(640, 5, 15), 2560), (640, 2560), [640, 640], 640)
        | TTA_640
        | {"SOLVER.IMS_PER_BATCH": 32}
    ),
    "mapillary-vistas-65/Base-MapillaryVistas-65": (
        COMMON
        | SEMANTIC
        | recipe(VISTAS, 300_000, (sizes(2048, 5, 20), 8192), (2048, 2048), [1280, 1280], 1280)
        | DETECTRON2_TTA
        | {"DATALOADER.NUM_WORKERS": 10}
    ),
    "coco-panoptic/Base-COCO-PanopticSegmentation": (
        COMMON
        | recipe(COCO, 554_400, (tuple(range(480, 801, 32)), 1333), (800, 1333), [384, 600], -1)
        | DETECTRON2_TTA
        | {
            "SOLVER.IMS_PER_BATCH": 64,
            "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
            "SOLVER.STEPS": (369_600,),
            "SOLVER.GAMMA": 0.1,
            "SOLVER.WARMUP_FACTOR": 1.0,
            "SOLVER.WARMUP_ITERS": 10,
            "INPUT.DATASET_MAPPER_NAME": "detr_panoptic",
            "INPUT.CROP.TYPE": "absolute_range",
            "INPUT.COLOR_AUG_SSD": False,
            "TEST.EVAL_PERIOD": 0,
        }
    ),
}


def classes(count: int, ignore: int = 255) -> dict[str, object]:
    return {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": count,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ignore,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    }


MASK_FORMER = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    "MODEL.MASK_FORMER.VOID_IN_LOSS": "background",
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
}
PER_PIXEL = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
}


def per_pixel_plus(queries: int) -> dict[str, object]:
    return {
        **PER_PIXEL,
        "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries,
        "MODEL.MASK_FORMER.DEC_LAYERS": 6,
        "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    }


R101 = {"MODEL.WEIGHTS": "R-101.pkl", "MODEL.RESNETS.DEPTH": 101}
R101C = {
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.WEIGHTS": "detectron2://DeepLab/R-103.pkl",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
}


def swin(
    width: int, depths: list[int], heads: list[int], window: int, side: int, file: str
) -> dict[str, object]:
    return {
        "MODEL.WEIGHTS": file,
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": width,
        "MODEL.SWIN.DEPTHS": depths,
        "MODEL.SWIN.NUM_HEADS": heads,
        "MODEL.SWIN.WINDOW_SIZE": window,
        "MODEL.SWIN.PRETRAIN_IMG_SIZE": side,
        "MODEL.SWIN.PATCH_SIZE": 4,
        "MODEL.SWIN.DROP_PATH_RATE": 0.3,
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.FROZEN_STAGES": -1,
        "SOLVER.BASE_LR": 6e-5,
        "SOLVER.WARMUP_FACTOR": 1e-6,
        "SOLVER.WARMUP_ITERS": 1500,
        "SOLVER.WEIGHT_DECAY": 0.01,
        "SOLVER.BACKBONE_MULTIPLIER": 1.0,
    }


SWIN_T = swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 224, "swin_tiny_patch4_window7_224.pkl")
SWIN_S = swin(96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 224, "swin_small_patch4_window7_224.pkl")
SWIN_B = swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384, "swin_base_patch4_window12_384_22k.pkl")
SWIN_L = swin(192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 384, "swin_large_patch4_window12_384_22k.pkl")

ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}
PANOPTIC = {
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
}
COCO_PANOPTIC = PANOPTIC | {"MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 0}
# The encoder's layers are inherited and not read by BasePixelDecoder, so they are not compared.
SWIN_PANOPTIC = {"MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True}


def family(folder: str, suffix: str, base: str, count: int, ignore: int) -> dict[str, dict[str, object]]:
    common = BASES[f"{folder}/{base}"] | classes(count, ignore)
    return {
        f"{folder}/per_pixel_baseline_R50_{suffix}": common | PER_PIXEL,
        f"{folder}/per_pixel_baseline_plus_R50_{suffix}": common | per_pixel_plus(count),
        f"{folder}/maskformer_R50_{suffix}": common | MASK_FORMER,
        f"{folder}/maskformer_R101_{suffix}": common | MASK_FORMER | R101,
        f"{folder}/maskformer_R101c_{suffix}": common | MASK_FORMER | R101C,
    }


ADE_150 = BASES["ade20k-150/Base-ADE20K-150"] | classes(150) | MASK_FORMER
ADE_150_PANOPTIC = (
    ADE_150
    | ENCODER
    | PANOPTIC
    | recipe(ADE_PANOPTIC, 720_000, *RECIPE_640)
    | {
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.7,
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
        "TEST.EVAL_PERIOD": 0,
    }
)
CITYSCAPES = BASES["cityscapes-19/Base-Cityscapes-19"] | classes(19) | MASK_FORMER
COCO_133 = BASES["coco-panoptic/Base-COCO-PanopticSegmentation"] | classes(133) | MASK_FORMER | COCO_PANOPTIC
COCO_SWIN = {name: value for name, value in COCO_133.items() if "TRANSFORMER_ENC_LAYERS" not in name}
COCO_SWIN = COCO_SWIN | SWIN_PANOPTIC
LARGER = recipe(ADE, 160_000, *RECIPE_640) | TTA_640

MODELS: dict[str, dict[str, object]] = {
    **family("ade20k-150", "bs16_160k", "Base-ADE20K-150", 150, 255),
    "ade20k-150/swin/maskformer_swin_tiny_bs16_160k": ADE_150 | SWIN_T,
    "ade20k-150/swin/maskformer_swin_small_bs16_160k": ADE_150 | SWIN_S,
    "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640": ADE_150 | SWIN_B | LARGER,
    "ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640": ADE_150 | SWIN_L | LARGER,
    "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k": ADE_150_PANOPTIC,
    "ade20k-150-panoptic/maskformer_panoptic_R101_bs16_720k": ADE_150_PANOPTIC | R101,
    **family("ade20k-full-847", "bs16_200k", "Base-ADE20KFull-847", 847, 65535),
    "cityscapes-19/maskformer_R101_bs16_90k": CITYSCAPES | R101,
    "cityscapes-19/maskformer_R101c_bs16_90k": CITYSCAPES | R101C,
    **family("coco-stuff-10k-171", "bs32_60k", "Base-COCOStuff10K-171", 171, 255),
    "mapillary-vistas-65/maskformer_R50_bs16_300k": (
        BASES["mapillary-vistas-65/Base-MapillaryVistas-65"] | classes(65, 65) | MASK_FORMER
    ),
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k": COCO_133 | ENCODER,
    "coco-panoptic/maskformer_panoptic_R101_bs64_554k": COCO_133 | ENCODER | R101,
    "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k": COCO_SWIN | SWIN_T,
    "coco-panoptic/swin/maskformer_panoptic_swin_small_bs64_554k": COCO_SWIN | SWIN_S,
    "coco-panoptic/swin/maskformer_panoptic_swin_base_IN21k_384_bs64_554k": COCO_SWIN | SWIN_B,
    "coco-panoptic/swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k": (
        COCO_SWIN | SWIN_L | {"INPUT.MAX_SIZE_TRAIN": 1000}
    ),
}

# Published figures: training memory in MB and score (with test-time augmentation, where published).
FIGURES = {
    "ade20k-150/per_pixel_baseline_R50": (2451, "mIoU", 39.2, 40.9),
    "ade20k-150/per_pixel_baseline_plus_R50": (5817, "mIoU", 41.9, 42.9),
    "ade20k-150/maskformer_R50": (4334, "mIoU", 44.5, 46.7),
    "ade20k-150/maskformer_R101": (4905, "mIoU", 45.5, 47.2),
    "ade20k-150/maskformer_R101c": (4968, "mIoU", 46.0, 48.1),
    "ade20k-150/swin/maskformer_swin_tiny": (5292, "mIoU", 46.7, 48.8),
    "ade20k-150/swin/maskformer_swin_small": (6330, "mIoU", 49.8, 51.0),
    "ade20k-150/swin/maskformer_swin_base_IN21k_384": (12928, "mIoU", 52.7, 53.9),
    "ade20k-150/swin/maskformer_swin_large_IN21k_384": (18144, "mIoU", 54.1, 55.6),
    "coco-stuff-10k-171/per_pixel_baseline_R50": (6898, "mIoU", 32.4, 34.4),
    "coco-stuff-10k-171/per_pixel_baseline_plus_R50": (18227, "mIoU", 34.2, 35.8),
    "coco-stuff-10k-171/maskformer_R50": (8618, "mIoU", 37.1, 38.9),
    "coco-stuff-10k-171/maskformer_R101": (10091, "mIoU", 38.1, 39.8),
    "coco-stuff-10k-171/maskformer_R101c": (9927, "mIoU", 38.0, 39.3),
    "ade20k-full-847/per_pixel_baseline_R50": (8030, "mIoU", 12.4),
    "ade20k-full-847/per_pixel_baseline_plus_R50": (26698, "mIoU", 13.9),
    "ade20k-full-847/maskformer_R50": (6529, "mIoU", 16.0),
    "ade20k-full-847/maskformer_R101": (6894, "mIoU", 16.8),
    "ade20k-full-847/maskformer_R101c": (6904, "mIoU", 17.4),
    "cityscapes-19/maskformer_R101": (6960, "mIoU", 78.5, 80.3),
    "cityscapes-19/maskformer_R101c": (7204, "mIoU", 79.7, 81.4),
    "mapillary-vistas-65/maskformer_R50": (15761, "mIoU", 53.1, 55.4),
    "coco-panoptic/maskformer_panoptic_R50": (22634, "PQ", 46.5),
    "coco-panoptic/maskformer_panoptic_R101": (27358, "PQ", 47.6),
    "coco-panoptic/swin/maskformer_panoptic_swin_tiny": (20023, "PQ", 47.7),
    "coco-panoptic/swin/maskformer_panoptic_swin_small": (21620, "PQ", 49.7),
    "coco-panoptic/swin/maskformer_panoptic_swin_base_IN21k_384": (24411, "PQ", 51.8),
    "coco-panoptic/swin/maskformer_panoptic_swin_large_IN21k_384": (23275, "PQ", 52.7),
    "ade20k-150-panoptic/maskformer_panoptic_R50": (15899, "PQ", 34.7),
    "ade20k-150-panoptic/maskformer_panoptic_R101": (16516, "PQ", 35.7),
}


# Helpers -------------------------------------------------------------------------------------------------


def value_at(cfg: CfgNode, name: str) -> object:
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def leaves(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_BASE_":
            yield prefix + key


def names_written(name: str) -> set[str]:
    return set(leaves(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())))


def chain(name: str) -> list[str]:
    """The file and all that it inherits from."""
    parent = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("_BASE_")
    if parent is None:
        return [name]
    above = os.path.normpath(Path(name).parent / parent).removesuffix(".yaml")
    return [name, *chain(above)]


def reads_of_build(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the keys that building the model of a config reads."""
    cfg = load_config(CONFIGS / f"{name}.yaml")
    cfg.MODEL.DEVICE = "meta"  # shapes without memory
    paths = {}

    def walk(node: CfgNode, prefix: str) -> None:
        paths[id(node)] = prefix
        for key, value in node.items():
            if isinstance(value, CfgNode):
                walk(value, f"{prefix}{key}.")

    walk(cfg, "")
    read, plain = set(), CfgNode.__getattr__

    def recording(node: CfgNode, key: str) -> object:
        if id(node) in paths:
            read.add(paths[id(node)] + key)
        return plain(node, key)

    with monkeypatch.context() as patch, torch.device("meta"):
        patch.setattr(CfgNode, "__getattr__", recording)
        build_model(cfg)
    return read


def attributes_read(files: list[Path]) -> set[str]:
    """Upper-case attributes that Python files read; assignments, as in config.py, do not count."""
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr.isupper()
    }


# Tests ---------------------------------------------------------------------------------------------------


def test_all_published_files_are_there_and_no_other():
    found = {
        str(file.relative_to(CONFIGS).with_suffix(""))
        for file in CONFIGS.rglob("*.yaml")
        if not {"shapes", "own-data"} & set(file.parts)
    }
    assert len(BASES) + len(MODELS) == 36
    assert found == set(BASES) | set(MODELS)


@pytest.mark.parametrize("name", [*BASES, *MODELS])
def test_effective_values_are_the_published_ones(name: str):
    cfg = load_config(CONFIGS / f"{name}.yaml")
    expected = (BASES | MODELS)[name]
    assert {key: value_at(cfg, key) for key in expected} == expected


def test_every_file_is_plain_yaml_of_known_keys():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert files
    for file in files:
        yaml.safe_load(file.read_text())  # a Python tag would raise here
        load_config(file)  # and a key that nobody declares here


def test_every_model_key_in_a_file_is_read_by_some_model(monkeypatch: pytest.MonkeyPatch):
    read: dict[str, set[str]] = {name: set() for name in [*BASES, *MODELS]}
    for name in MODELS:
        reads = reads_of_build(name, monkeypatch)
        # A key counts only if the file's own model reads it or, in a base, the model of any heir.
        for file in chain(name):
            if file == name or file in BASES:
                read[file] |= reads
    not_in_the_model = {"MODEL.WEIGHTS", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"}  # for the loader, for the crop
    dead = {
        (name, key)
        for name in read
        for key in names_written(name) - read[name] - not_in_the_model
        if key.startswith("MODEL.")
    }
    assert dead == set()


def test_every_other_key_in_a_file_is_read_by_some_module():
    ours = [*(ROOT / "mask_former").rglob("*.py"), *ROOT.glob("train_net.py")]
    package = Path(detectron2.__file__).parent
    theirs = [
        package / file
        for file in (
            "data/build.py",
            "data/detection_utils.py",
            "engine/defaults.py",
            "solver/build.py",
            "modeling/test_time_augmentation.py",
            "data/dataset_mapper.py",
            "projects/deeplab/build_solver.py",
        )
    ]
    read = attributes_read(ours + theirs)
    written = {key for name in [*BASES, *MODELS] for key in names_written(name)}
    others = {key for key in written if not key.startswith("MODEL.")} - {
        "VERSION"
    }  # Detectron2's loader's own
    assert {key for key in others if key.rpartition(".")[2] not in read} == set()


@pytest.mark.parametrize("name", MODELS)
def test_header_gives_command_hardware_score_and_source(name: str):
    text = (CONFIGS / f"{name}.yaml").read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("# "))
    assert text.startswith("# ")
    assert f"--config-file configs/{name}.yaml" in header
    memory, metric, *scores = FIGURES[re.sub(r"_bs\d+_\d+k(_res640)?$", "", name)]
    hardware, expected = (
        re.search(rf"^# {word}: *(.*)$", header, re.M)[1] for word in ("Hardware", "Expected")
    )
    gpus = 64 if name.startswith("coco-panoptic") else 8
    assert f"{gpus} V100, {memory} MB" in hardware
    assert expected.startswith(f"{metric} {scores[0]}")
    assert [float(number) for number in re.findall(r"\d+\.\d", expected)] == scores
    assert "published model zoo" in re.search(r"^# Source: *(.*)$", header, re.M)[1]


def test_python_tags_are_refused_with_a_word_on_what_to_do(tmp_path: Path):
    file = tmp_path / "tagged.yaml"
    file.write_text("INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ['[1, 2]']\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"tagged\.yaml.*Python tags.*plain values"):
        load_config(file)


@pytest.mark.parametrize(
    ("opts", "complaint"),
    [
        (["SEED"], "'SEED' are 1 words, expected pairs KEY VALUE: give each key its value"),
        (["SOLVER.BASELR", 1], "SOLVER.BASELR is no configuration key; did you mean SOLVER.BASE_LR?"),
        (["QWERTZUIOP", 1], "QWERTZUIOP is no configuration key; see mask_former/config.py"),
    ],
)
def test_overrides_that_are_none_are_refused(opts: list[object], complaint: str):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_config(opts=opts)
