"""Whole models go to Hugging Face's independent MaskFormer, give the same logits there, and come back."""

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from drawn_weights import draw
from torch import Tensor, nn
from transformers import MaskFormerForInstanceSegmentation

import mask_former.modeling  # noqa: F401  (fills the registries)
from mask_former.checkpoint import Checkpointer, describe, read_checkpoint
from mask_former.config import load_config
from mask_former.conversion.files import read_source
from mask_former.convert import configuration, main

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
R50 = "ade20k-150/maskformer_R50_bs16_160k"
SWIN_T = "ade20k-150/swin/maskformer_swin_tiny_bs16_160k"
THIN = ["MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [2, 2, 3, 2], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 3]]
# Windows have 7 or 12 cells a side in the published models.
MODELS = {
    "R50": (R50, []),
    "Swin-T": (SWIN_T, []),
    "thin Swin, window 12": (SWIN_T, [*THIN, "MODEL.SWIN.WINDOW_SIZE", 12]),
}


class Pair(NamedTuple):
    """Our model, theirs from the folder that `mask_former.convert` wrote, and what loading it told."""

    cfg: CfgNode
    ours: nn.Module
    theirs: nn.Module
    folder: Path
    loading: dict[str, object]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(12)
    options = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.DROPOUT", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    recipe, changes = MODELS[request.param]
    cfg = load_config(CONFIGS / f"{recipe}.yaml", [*options, *changes])
    ours = build_model(cfg).eval()
    draw(ours)
    folder = tmp_path_factory.mktemp("pair")
    Checkpointer(ours, metadata=describe(cfg)).save_weights(folder / "ours.pth")
    assert main([str(folder / "ours.pth"), str(folder / "theirs")]) == 0
    theirs, loading = MaskFormerForInstanceSegmentation.from_pretrained(
        folder / "theirs", output_loading_info=True, use_auxiliary_loss=True, output_auxiliary_logits=True
    )
    return Pair(cfg, ours, theirs.eval(), folder, loading)


def assert_close(ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> None:
    """Within 1e-4 of the largest value: two float32 networks that add in different orders."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # logits that do not vary would agree for the wrong reason
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < bound


def test_every_entry_has_its_place(pair: Pair):
    assert not pair.loading["missing_keys"]
    assert not pair.loading["unexpected_keys"]
    assert not pair.loading["mismatched_keys"]


def test_weights_and_configuration_come_back(pair: Pair):
    file = pair.folder / "back.pth"
    assert main([str(pair.folder / "theirs"), str(file)]) == 0
    expected, found = pair.ours.state_dict(), read_checkpoint(file)["model"]
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    again = configuration(read_source(file), None, [])
    assert again.MODEL.MASK_FORMER == pair.cfg.MODEL.MASK_FORMER
    checkpointer = Checkpointer(build_model(again), strict=True)
    checkpointer.load(str(file))
    assert checkpointer.report.is_complete


@pytest.mark.parametrize("size", [(97, 129), (61, 230)])
@torch.no_grad()
def test_logits_are_equal(pair: Pair, size: tuple[int, int]):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    answer = pair.ours.predict(image)[-1]
    expected = pair.theirs(image, output_hidden_states=True)
    assert_close(answer.class_logits, expected.class_queries_logits)
    assert_close(answer.mask_logits, expected.masks_queries_logits)


@torch.no_grad()
def test_logits_of_a_padded_batch_are_equal(pair: Pair):
    # In float32 either R50 differs from its own float64 logits by 2e-4 to 7e-4 of the largest here, depending
    # on the number of threads; in float64 the two differ by 8e-9.
    ours, theirs = (copy.deepcopy(model).double() for model in (pair.ours, pair.theirs))
    draws = torch.Generator().manual_seed(5)
    pictures = [torch.randint(0, 256, (3, *size), generator=draws) for size in [(97, 129), (70, 101)]]
    images = ours.prepare_images(pictures).tensor
    assert images.shape == (2, 3, 128, 160)
    answer = ours.predict(images)[-1]
    expected = theirs(images, output_hidden_states=True)
    assert_close(answer.class_logits, expected.class_queries_logits, bound=1e-7)
    assert_close(answer.mask_logits, expected.masks_queries_logits, bound=1e-7)


@torch.no_grad()
def test_logits_of_every_layer_are_equal(pair: Pair):
    ours, theirs = pair.ours, pair.theirs
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
def test_semantic_maps_are_equal(pair: Pair):
    ours, theirs = pair.ours, pair.theirs
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
