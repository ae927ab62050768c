"""Our model and Hugging Face's independent MaskFormer, run as a black box, give the same logits."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
)

import mask_former.modeling  # noqa: F401  (fills the registries)
from mask_former.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STAGES = ["stage1", "stage2", "stage3", "stage4"]

# Our name (a regular expression) -> theirs, in the order of application.
_BACKBONE = "model.pixel_level_module.encoder"
_SWIN = (
    (r"^backbone\.patch_embed\.proj", f"{_BACKBONE}.model.embeddings.patch_embeddings.projection"),
    (r"^backbone\.patch_embed\.norm", f"{_BACKBONE}.model.embeddings.norm"),
    (r"^backbone\.norm(\d)", rf"{_BACKBONE}.hidden_states_norms.\1"),
    (r"^backbone\.layers", f"{_BACKBONE}.model.encoder.layers"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj", ".attention.output.dense"),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
)
_RESNET = (
    (r"^backbone\.stem\.conv1\.norm", f"{_BACKBONE}.embedder.embedder.normalization"),
    (r"^backbone\.stem\.conv1", f"{_BACKBONE}.embedder.embedder.convolution"),
    (r"\.norm\.", ".normalization."),
    (r"(conv\d|shortcut)\.weight$", r"\1.convolution.weight"),
    (
        r"^backbone\.res(\d)\.(\d+)\.",
        lambda found: f"{_BACKBONE}.encoder.stages.{int(found[1]) - 2}.layers.{found[2]}.",
    ),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}."),
)
_DECODER = "model.pixel_level_module.decoder"
_TRANSFORMER = "model.transformer_module"
_HEAD = (
    (r"^sem_seg_head\.pixel_decoder\.mask_features", f"{_DECODER}.mask_projection"),
    (r"^sem_seg_head\.pixel_decoder\.layer_4\.norm", f"{_DECODER}.fpn.stem.1"),
    (r"^sem_seg_head\.pixel_decoder\.layer_4", f"{_DECODER}.fpn.stem.0"),
    # Theirs counts from the coarse maps to the fine, ours from the fine to the coarse.
    (
        r"^sem_seg_head\.pixel_decoder\.(adapter|layer)_(\d)(\.norm)?",
        lambda found: (
            f"{_DECODER}.fpn.layers.{3 - int(found[2])}."
            f"{'proj' if found[1] == 'adapter' else 'block'}.{1 if found[3] else 0}"
        ),
    ),
    (r"^sem_seg_head\.predictor\.query_embed", f"{_TRANSFORMER}.queries_embedder"),
    (r"^sem_seg_head\.predictor\.input_proj", f"{_TRANSFORMER}.input_projection"),
    (r"^sem_seg_head\.predictor\.class_embed", "class_predictor"),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)", r"mask_embedder.\1.0"),
    (r"^sem_seg_head\.predictor\.transformer\.decoder\.norm", f"{_TRANSFORMER}.decoder.layernorm"),
    (r"^sem_seg_head\.predictor\.transformer\.decoder", f"{_TRANSFORMER}.decoder"),
    (r"\.self_attn\.out_proj", ".self_attn.o_proj"),
    (r"\.multihead_attn\.out_proj", ".encoder_attn.o_proj"),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
)


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a MaskFormer with BasePixelDecoder, and split query, key and value."""
    is_swin = "backbone.patch_embed.proj.weight" in state
    renamed = {}
    for name, tensor in state.items():
        rules = _HEAD if name.startswith("sem_seg_head") else _SWIN if is_swin else _RESNET
        theirs = name
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        if ".qkv." in name:
            parts, joined = ("query", "key", "value"), "qkv."
        elif ".in_proj_" in name:
            parts, joined = ("q_proj", "k_proj", "v_proj"), "in_proj_"
        else:
            renamed[theirs] = tensor
            continue
        for part, third in zip(parts, tensor.chunk(3), strict=True):
            renamed[theirs.replace(joined, f"{part}.")] = third
    return renamed


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


def ours_and_theirs(config: str, backbone_config: ResNetConfig | SwinConfig) -> tuple[nn.Module, nn.Module]:
    """Build both models with the same drawn weights."""
    torch.manual_seed(12)
    options = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.DROPOUT", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    cfg = load_config(CONFIGS / f"{config}.yaml", options)
    ours = build_model(cfg).eval()
    draw(ours)
    theirs = MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=backbone_config,
            decoder_config=DetrConfig(decoder_layers=6, num_queries=100),
            num_labels=150,
            use_auxiliary_loss=True,
            output_auxiliary_logits=True,
        )
    ).eval()
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("criterion")}
    keys = theirs.load_state_dict(to_hugging_face(state), strict=False)
    assert keys.unexpected_keys == []
    # What has no part in the logits: counters, loss weights, the norm of Swin's pooled output.
    unused = r"num_batches_tracked$|^criterion\.|\.encoder\.model\.layernorm\."
    assert [key for key in keys.missing_keys if not re.search(unused, key)] == []
    return ours, theirs


BACKBONES = {
    "ade20k-150/maskformer_R50_bs16_160k": ResNetConfig(layer_type="bottleneck", out_features=STAGES),
    "ade20k-150/swin/maskformer_swin_tiny_bs16_160k": SwinConfig(out_features=STAGES),
}


@pytest.fixture(scope="module", params=BACKBONES, ids=["R50", "Swin-T"])
def models(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return ours_and_theirs(request.param, BACKBONES[request.param])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest value: two float32 networks that add in different orders."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # logits that do not vary would agree for the wrong reason
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-4


@pytest.mark.parametrize("size", [(97, 129), (61, 230), (128, 96)])
@torch.no_grad()
def test_logits_are_equal(models: tuple[nn.Module, nn.Module], size: tuple[int, int]):
    ours, theirs = models
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    answer = ours.predict(image)[-1]
    expected = theirs(image, output_hidden_states=True)
    assert_close(answer.class_logits, expected.class_queries_logits)
    assert_close(answer.mask_logits, expected.masks_queries_logits)


@torch.no_grad()
def test_logits_of_a_padded_batch_are_equal(models: tuple[nn.Module, nn.Module]):
    ours, theirs = models
    draws = torch.Generator().manual_seed(5)
    pictures = [torch.randint(0, 256, (3, *size), generator=draws) for size in [(97, 129), (70, 101)]]
    images = ours.prepare_images(pictures).tensor
    assert images.shape == (2, 3, 128, 160)
    answer = ours.predict(images)[-1]
    expected = theirs(images, output_hidden_states=True)
    assert_close(answer.class_logits, expected.class_queries_logits)
    assert_close(answer.mask_logits, expected.masks_queries_logits)


@torch.no_grad()
def test_logits_of_every_layer_are_equal(models: tuple[nn.Module, nn.Module]):
    ours, theirs = models
    image = torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(6))
    predictions = ours.train().predict(image)  # nothing is random: dropout and drop path are off
    ours.eval()
    outputs = theirs(image, output_hidden_states=True)
    # Their auxiliary logits leave out the decoder's norm, which the published models share among all layers
    # (their answer has it), so they are made here from their public hidden states by their own modules.
    layers = outputs.transformer_decoder_hidden_states[1:]  # 0 is what goes into the first layer
    assert len(predictions) == len(layers) == 6
    for i, (prediction, hidden) in enumerate(zip(predictions, layers, strict=True)):
        queries = hidden if i == 5 else theirs.model.transformer_module.decoder.layernorm(hidden)
        masks = torch.einsum(
            "bqc,bchw->bqhw", theirs.mask_embedder(queries), outputs.pixel_decoder_last_hidden_state
        )
        assert_close(prediction.class_logits, theirs.class_predictor(queries))
        assert_close(prediction.mask_logits, masks)


@torch.no_grad()
def test_semantic_maps_are_equal(models: tuple[nn.Module, nn.Module]):
    ours, theirs = models
    picture = torch.randint(0, 256, (3, 97, 129), generator=torch.Generator().manual_seed(7))
    images = ours.prepare_images([picture]).tensor
    expected = theirs(images, output_hidden_states=True)
    masks = nn.functional.interpolate(
        expected.masks_queries_logits, size=images.shape[-2:], mode="bilinear", align_corners=False
    ).sigmoid()[0, :, :97, :129]
    scores = torch.zeros(150, 97, 129)
    for query, probability in zip(expected.class_queries_logits[0].softmax(-1), masks, strict=True):
        scores += query[:150, None, None] * probability
    assert_close(ours([{"image": picture}])[0]["sem_seg"], scores)
