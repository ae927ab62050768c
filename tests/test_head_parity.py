"""The head against an independent implementation, run as a black box with the same random weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from small_heads import small_config
from torch import Tensor, nn

from mask_former.modeling import head as head

WIDTHS = (32, 48, 64, 80)
LAYERS = 3
DECODER_PARTS = {
    "self_attn.out_proj": "self_attn.o_proj",
    "multihead_attn.out_proj": "encoder_attn.o_proj",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "norm1": "self_attn_layer_norm",
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
}


def other_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=list(WIDTHS),
        depths=[1] * 4,
        layer_type="basic",
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    decoder = transformers.DetrConfig(
        num_queries=7,
        d_model=32,
        encoder_layers=0,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_ffn_dim=40,
        use_timm_backbone=False,
        backbone_config=backbone,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=24,
        num_labels=5,
    )
    model = transformers.MaskFormerForInstanceSegmentation(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # new norms and biases would hide a swapped one
            nn.init.normal_(parameter, std=0.3)
    return model


def module_names() -> dict[str, str]:
    """Our module -> theirs, for modules with a weight and perhaps a bias."""
    theirs = "model.pixel_level_module.decoder."
    names = {
        "pixel_decoder.layer_4": theirs + "fpn.stem.0",
        "pixel_decoder.layer_4.norm": theirs + "fpn.stem.1",
    }
    for i, level in enumerate((3, 2, 1)):
        for ours, part in (("adapter", "proj"), ("layer", "block")):
            names[f"pixel_decoder.{ours}_{level}"] = f"{theirs}fpn.layers.{i}.{part}.0"
            names[f"pixel_decoder.{ours}_{level}.norm"] = f"{theirs}fpn.layers.{i}.{part}.1"
    names["pixel_decoder.mask_features"] = theirs + "mask_projection"
    theirs = "model.transformer_module."
    names["predictor.query_embed"] = theirs + "queries_embedder"
    names["predictor.input_proj"] = theirs + "input_projection"
    names["predictor.transformer.decoder.norm"] = theirs + "decoder.layernorm"
    for layer in range(LAYERS):
        for our_part, their_part in DECODER_PARTS.items():
            ours = f"predictor.transformer.decoder.layers.{layer}.{our_part}"
            names[ours] = f"{theirs}decoder.layers.{layer}.{their_part}"
    names["predictor.class_embed"] = "class_predictor"
    return names | {f"predictor.mask_embed.layers.{i}": f"mask_embedder.{i}.0" for i in range(3)}


def our_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {
        f"{ours}.{kind}": theirs[f"{name}.{kind}"]
        for ours, name in module_names().items()
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in theirs
    }
    for layer in range(LAYERS):
        for ours, name in (("self_attn", "self_attn"), ("multihead_attn", "encoder_attn")):
            for kind in ("weight", "bias"):
                parts = [
                    theirs[f"model.transformer_module.decoder.layers.{layer}.{name}.{part}_proj.{kind}"]
                    for part in "qkv"
                ]
                state[f"predictor.transformer.decoder.layers.{layer}.{ours}.in_proj_{kind}"] = torch.cat(
                    parts
                )
    return state


@pytest.mark.parametrize("size", [(64, 96), (70, 101)], ids=str)
def test_logits_equal_those_of_an_independent_implementation(size: tuple[int, int]):
    torch.manual_seed(0)
    theirs = other_model()
    shapes = {f"res{i}": ShapeSpec(channels=c, stride=2**i) for i, c in enumerate(WIDTHS, start=2)}
    ours = build_sem_seg_head(small_config({"MODEL.MASK_FORMER.HIDDEN_DIM": 32}), shapes).eval()
    ours.load_state_dict(our_state(theirs.state_dict()))

    maps: dict[str, Tensor] = {}
    theirs.model.pixel_level_module.encoder.register_forward_hook(
        lambda module, inputs, result: maps.update(zip(shapes, result.feature_maps, strict=True))
    )
    with torch.no_grad():
        expected = theirs(torch.randn(2, 3, *size))
        [answer] = ours(maps)
    torch.testing.assert_close(answer.class_logits, expected.class_queries_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer.mask_logits, expected.masks_queries_logits, atol=1e-5, rtol=1e-5)
