"""Our model and Hugging Face's independent MaskFormer, run as a black box, give the same logits."""

import copy
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from drawn_weights import draw
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
from mask_former.conversion.hugging_face_names import to_hugging_face

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def in_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names of their files as version 5 has them in memory."""
    rules = ((r"_attn\.out_proj\.", "_attn.o_proj."), (r"(decoder\.layers\.\d\.)fc", r"\1mlp.fc"))
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


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
    keys = theirs.load_state_dict(in_memory(to_hugging_face(state)), strict=False)
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


def assert_close(ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> None:
    """Within 1e-4 of the largest value: two float32 networks that add in different orders."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # logits that do not vary would agree for the wrong reason
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < bound


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
    # In float32 either R50 differs from its own float64 logits by 2e-4 to 7e-4 of the largest here, depending
    # on the number of threads; in float64 the two differ by 8e-9.
    ours, theirs = (copy.deepcopy(model).double() for model in models)
    draws = torch.Generator().manual_seed(5)
    pictures = [torch.randint(0, 256, (3, *size), generator=draws) for size in [(97, 129), (70, 101)]]
    images = ours.prepare_images(pictures).tensor
    assert images.shape == (2, 3, 128, 160)
    answer = ours.predict(images)[-1]
    expected = theirs(images, output_hidden_states=True)
    assert_close(answer.class_logits, expected.class_queries_logits, bound=1e-7)
    assert_close(answer.mask_logits, expected.masks_queries_logits, bound=1e-7)


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
