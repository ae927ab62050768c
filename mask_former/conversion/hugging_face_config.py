"""Hugging Face's config.json and preprocessor_config.json, and the config keys that mean the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from mask_former.conversion.backbones import RESNET_BLOCKS, resnet_depth

STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Key -> field of theirs that has the same value, and the default that transformers gives it.
Fields = dict[str, tuple[str, Any]]
MODEL_FIELDS: Fields = {
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": ("fpn_feature_size", 256),
    "MODEL.SEM_SEG_HEAD.MASK_DIM": ("mask_feature_size", 256),
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": ("no_object_weight", 0.1),
    "MODEL.MASK_FORMER.DICE_WEIGHT": ("dice_weight", 1.0),
    "MODEL.MASK_FORMER.MASK_WEIGHT": ("mask_weight", 20.0),
}
DECODER_FIELDS: Fields = {
    "MODEL.MASK_FORMER.HIDDEN_DIM": ("d_model", 256),
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": ("num_queries", 100),
    "MODEL.MASK_FORMER.DEC_LAYERS": ("decoder_layers", 6),
    "MODEL.MASK_FORMER.NHEADS": ("decoder_attention_heads", 8),
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": ("decoder_ffn_dim", 2048),
    "MODEL.MASK_FORMER.DROPOUT": ("dropout", 0.1),
}
SWIN_FIELDS: Fields = {
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": ("image_size", 224),
    "MODEL.SWIN.PATCH_SIZE": ("patch_size", 4),
    "MODEL.SWIN.EMBED_DIM": ("embed_dim", 96),
    "MODEL.SWIN.DEPTHS": ("depths", [2, 2, 6, 2]),
    "MODEL.SWIN.NUM_HEADS": ("num_heads", [3, 6, 12, 24]),
    "MODEL.SWIN.WINDOW_SIZE": ("window_size", 7),
    "MODEL.SWIN.MLP_RATIO": ("mlp_ratio", 4.0),
    "MODEL.SWIN.QKV_BIAS": ("qkv_bias", True),
    "MODEL.SWIN.DROP_RATE": ("hidden_dropout_prob", 0.0),
    "MODEL.SWIN.ATTN_DROP_RATE": ("attention_probs_dropout_prob", 0.0),
    "MODEL.SWIN.DROP_PATH_RATE": ("drop_path_rate", 0.1),
}
# What their implementation has no place for: key -> the one value that can go there.
ONLY = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "INPUT.FORMAT": "RGB",
}
ONLY_SWIN = {"MODEL.SWIN.QK_SCALE": None, "MODEL.SWIN.APE": False, "MODEL.SWIN.PATCH_NORM": True}
ONLY_RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.RES5_DILATION": 1,
}


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _theirs(cfg: CfgNode, fields: Fields) -> dict[str, Any]:
    return {field: _value(cfg, key) for key, (field, _) in fields.items()}


def _ours(config: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Return the config keys of fields; JSON has 1 where a configuration wants 1.0."""
    values = {key: (config.get(field, default), default) for key, (field, default) in fields.items()}
    return {key: type(default)(value) for key, (value, default) in values.items()}


def check_exportable(cfg: CfgNode) -> None:
    """Raise ValueError if their implementation cannot hold the model of a configuration."""
    is_swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    for key, expected in {**ONLY, **(ONLY_SWIN if is_swin else ONLY_RESNET)}.items():
        if _value(cfg, key) != expected:
            raise ValueError(
                f"{key} is {_value(cfg, key)!r}; Hugging Face's MaskFormer has {expected!r} alone, so this "
                "model cannot be written for it. The published layout (DST.pkl) holds any model."
            )
    channels = cfg.MODEL.SWIN.EMBED_DIM * 8 if is_swin else cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
    if cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ and channels == cfg.MODEL.MASK_FORMER.HIDDEN_DIM:
        raise ValueError(
            f"MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ is True where res5 has HIDDEN_DIM = {channels} channels; "
            "Hugging Face's MaskFormer has no projection there."
        )


def model_config(cfg: CfgNode, class_names: Sequence[str]) -> dict[str, Any]:
    """Return config.json for a model of `cfg`; without class names, classes are numbered."""
    check_exportable(cfg)
    options = cfg.MODEL.MASK_FORMER
    names = list(class_names) or [f"class {index}" for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    is_swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _swin_config(cfg) if is_swin else _resnet_config(cfg),
        "decoder_config": {
            "model_type": "detr",
            **_theirs(cfg, DECODER_FIELDS),
            "encoder_attention_heads": options.NHEADS,
            "attention_dropout": options.DROPOUT,
            "activation_dropout": options.DROPOUT,
        },
        **_theirs(cfg, MODEL_FIELDS),
        # Ours, for the way back; theirs keeps it and does not read it.
        "size_divisibility": options.SIZE_DIVISIBILITY,
        "cross_entropy_weight": 1.0,
        # Theirs takes it in training only with options that its own inference does not set, and then fails.
        "use_auxiliary_loss": False,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _swin_config(cfg: CfgNode) -> dict[str, Any]:
    fixed = {"num_channels": 3, "hidden_act": "gelu", "use_absolute_embeddings": False}
    return {"model_type": "swin", **_theirs(cfg, SWIN_FIELDS), **fixed, "out_features": STAGES}


def _resnet_config(cfg: CfgNode) -> dict[str, Any]:
    resnet = cfg.MODEL.RESNETS
    return {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": resnet.STEM_OUT_CHANNELS,
        "hidden_sizes": [resnet.RES2_OUT_CHANNELS * 2**stage for stage in range(4)],
        "depths": RESNET_BLOCKS[resnet.DEPTH],
        "layer_type": "basic" if resnet.DEPTH < 50 else "bottleneck",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": resnet.STRIDE_IN_1X1,
        "hidden_act": "relu",
        "out_features": STAGES,
    }


def processor_config(cfg: CfgNode, ignore_value: int, reduce_labels: bool) -> dict[str, Any]:
    """Return preprocessor_config.json.

    Args:
        cfg: the configuration.
        ignore_value: label of void pixels in the labels that the processor is given.
        reduce_labels: labels are raw ADE20K's, 0 for void and 1 for class 0; else they are classes.
    """
    return {
        "image_processor_type": "MaskFormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        # Theirs stretches images to a multiple, which ours never does; the network takes any size.
        "size_divisor": 0,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": ignore_value,
        "do_reduce_labels": reduce_labels,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }


def class_names(config: Mapping[str, Any]) -> list[str]:
    """Return the class names of a config.json, by their numbers."""
    labels = config.get("id2label") or {}
    try:
        numbered = {int(index): str(name) for index, name in labels.items()}
        return [numbered[index] for index in range(len(numbered))]
    except (KeyError, ValueError) as error:
        raise ValueError(f"config.json: id2label does not number its classes from 0 on ({error}).") from error


def config_keys(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys of the model of config.json, for images as preprocessor_config.json says.

    Fields that a file leaves out have the defaults of transformers.
    """
    if config.get("model_type") != "maskformer":
        raise ValueError(f"config.json is of a {config.get('model_type')!r}, expected a 'maskformer'.")
    return {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(class_names(config)),
        **_ours(config, MODEL_FIELDS),
        **_ours(config.get("decoder_config") or {}, DECODER_FIELDS),
        **_backbone_keys(config.get("backbone_config") or {}),
        **_image_keys(config, processor),
    }


def _backbone_keys(backbone: Mapping[str, Any]) -> dict[str, Any]:
    kind = backbone.get("model_type", "swin")
    if kind in ("swin", "maskformer-swin"):
        return {"MODEL.BACKBONE.NAME": "D2SwinTransformer", **_ours(backbone, SWIN_FIELDS)}
    if kind != "resnet":
        raise ValueError(f"config.json: the backbone is a {kind!r}; converted are 'resnet' and 'swin'.")
    is_basic = backbone.get("layer_type") == "basic"
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": resnet_depth(backbone.get("depths", [3, 4, 6, 3]), is_basic),
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": backbone.get("embedding_size", 64),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": backbone.get("hidden_sizes", [256])[0],
        "MODEL.RESNETS.STRIDE_IN_1X1": bool(backbone.get("downsample_in_bottleneck", False)),
    }


def _image_keys(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    size = processor.get("size", 800)
    if not isinstance(size, Mapping):  # how early files have it
        size = {"shortest_edge": size, "longest_edge": processor.get("max_size", 1333)}
    scale = 1 / processor.get("rescale_factor", 1 / 255)
    divisor = processor.get("size_divisor", processor.get("size_divisibility", 32))
    return {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": size.get("shortest_edge", 800),
        "INPUT.MAX_SIZE_TEST": size.get("longest_edge", 1333),
        "MODEL.PIXEL_MEAN": [
            round(value * scale, 6) for value in processor.get("image_mean", [0.485, 0.456, 0.406])
        ],
        "MODEL.PIXEL_STD": [
            round(value * scale, 6) for value in processor.get("image_std", [0.229, 0.224, 0.225])
        ],
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": config.get("size_divisibility", divisor),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": processor.get("ignore_index") or 255,
    }
