from itertools import pairwise

import pytest
import torch
from small_heads import small_config
from torch import Tensor, nn

from mask_former.modeling.transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    StandardTransformerDecoder,
    build_transformer_decoder,
)

PRE_NORM_WITH_ENCODER = {"MODEL.MASK_FORMER.PRE_NORM": True, "MODEL.MASK_FORMER.ENC_LAYERS": 1}
BOTH = pytest.mark.parametrize("options", [{}, PRE_NORM_WITH_ENCODER], ids=["default", "pre_norm_encoder"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(options: dict[str, object] | None = None, in_channels: int = 20, **kwargs: bool) -> nn.Module:
    return build_transformer_decoder(small_config(options), in_channels, **kwargs)


def decoder_inputs(in_channels: int = 20) -> tuple[Tensor, Tensor]:
    """A memory map and mask features of two pictures."""
    return torch.randn(2, in_channels, 3, 4), torch.randn(2, 24, 18, 25)


def query_embeddings(decoder: nn.Module, memory: Tensor) -> list[Tensor]:
    """The states of the queries after each layer, from the projected memory."""
    projected = torch.einsum("oc,bchw->bohw", decoder.input_proj.weight[:, :, 0, 0], memory)
    projected = projected + decoder.input_proj.bias[:, None, None]
    return decoder.transformer.decoder(decoder.query_embed.weight, projected)


def test_registry_holds_the_standard_decoder():
    assert TRANSFORMER_DECODER_REGISTRY.get("StandardTransformerDecoder") is StandardTransformerDecoder


def test_mask_logits_are_dot_products_of_mask_embeddings_and_pixels():
    decoder, (memory, mask_features) = built({"MODEL.MASK_FORMER.DROPOUT": 0.0}), decoder_inputs()
    weights = [(layer.weight, layer.bias) for layer in decoder.mask_embed.layers]
    assert [tuple(w.shape) for w, _ in weights] == [(16, 16), (16, 16), (24, 16)]
    predictions, embeddings = decoder(memory, mask_features), query_embeddings(decoder, memory)
    for prediction, states in zip(predictions, embeddings, strict=True):
        (w0, b0), (w1, b1), (w2, b2) = weights
        hidden = (states @ w0.T + b0).clamp(min=0)
        embedding = (hidden @ w1.T + b1).clamp(min=0) @ w2.T + b2
        for image, query, y, x in [(0, 0, 0, 0), (1, 6, 17, 24), (1, 2, 5, 11)]:
            expected = (embedding[image, query] * mask_features[image, :, y, x]).sum()
            torch.testing.assert_close(
                prediction.mask_logits[image, query, y, x], expected, atol=1e-5, rtol=1e-5
            )


def test_class_logits_are_linear_in_the_query_embeddings():
    decoder, (memory, mask_features) = built().eval(), decoder_inputs()
    states = query_embeddings(decoder, memory)[-1]
    expected = states @ decoder.class_embed.weight.T + decoder.class_embed.bias
    assert expected.shape == (2, 7, 6)
    torch.testing.assert_close(decoder(memory, mask_features)[-1].class_logits, expected)


@pytest.mark.parametrize(
    ("deep_supervision", "training", "layers"), [(True, True, 3), (True, False, 1), (False, True, 1)]
)
def test_supervised_layers_answer_in_training(deep_supervision: bool, training: bool, layers: int):
    decoder = built({"MODEL.MASK_FORMER.DEEP_SUPERVISION": deep_supervision}).train(training)
    predictions = decoder(*decoder_inputs())
    assert len(predictions) == layers
    for prediction in predictions:
        assert prediction.class_logits.shape == (2, 7, 6)
        assert prediction.mask_logits.shape == (2, 7, 18, 25)


def test_answer_is_the_last_layer_in_training_and_evaluation():
    decoder, maps = built({"MODEL.MASK_FORMER.DROPOUT": 0.0}), decoder_inputs()
    in_training, [in_evaluation] = decoder(*maps), decoder.eval()(*maps)
    torch.testing.assert_close(in_training[-1], in_evaluation)
    for earlier, later in pairwise(in_training):
        assert not torch.allclose(earlier.mask_logits, later.mask_logits)


def test_without_classification_there_is_no_classifier():
    decoder = built(mask_classification=False)
    assert not any(name.startswith("class_embed") for name in decoder.state_dict())
    prediction = decoder(*decoder_inputs())[-1]
    assert prediction.class_logits.shape == (2, 7, 0)
    assert prediction.mask_logits.shape == (2, 7, 18, 25)


@pytest.mark.parametrize(
    ("in_channels", "enforce", "has_projection"), [(20, False, True), (16, False, False), (16, True, True)]
)
def test_memory_is_projected_where_needed_or_asked(in_channels: int, enforce: bool, has_projection: bool):
    decoder = built({"MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": enforce}, in_channels)
    assert ("input_proj.weight" in decoder.state_dict()) is has_projection
    assert decoder(*decoder_inputs(in_channels))[-1].mask_logits.shape == (2, 7, 18, 25)


def test_encoder_is_there_only_when_it_has_layers():
    assert not any(name.startswith("transformer.encoder") for name in built().state_dict())
    names = built({"MODEL.MASK_FORMER.ENC_LAYERS": 2}).state_dict()
    layers = {name.split(".")[3] for name in names if name.startswith("transformer.encoder.layers.")}
    assert layers == {"0", "1"}


@BOTH
def test_every_parameter_gets_a_finite_gradient(options: dict[str, object]):
    decoder = built(options)
    predictions = decoder(*decoder_inputs())
    sum(p.class_logits.square().mean() + p.mask_logits.square().mean() for p in predictions).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@BOTH
def test_batch_of_two_equals_singles(options: dict[str, object]):
    decoder, (memory, mask_features) = built(options).eval(), decoder_inputs()
    [both] = decoder(memory, mask_features)
    for i in range(2):
        [single] = decoder(memory[i : i + 1], mask_features[i : i + 1])
        for part, alone in zip(both, single, strict=True):
            torch.testing.assert_close(part[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_permuted_queries_give_permuted_predictions():
    decoder, maps = built().eval(), decoder_inputs()
    [before] = decoder(*maps)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    with torch.no_grad():
        decoder.query_embed.weight.copy_(decoder.query_embed.weight[order])
    [after] = decoder(*maps)
    for part, permuted in zip(before, after, strict=True):
        torch.testing.assert_close(part[:, order], permuted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRANSFORMER_DECODER_NAME", "Nothing", r"'Nothing' is not registered.*StandardTransformerDecoder"),
        ("DEC_LAYERS", 0, r"0; it must be at least 1"),
        ("NUM_OBJECT_QUERIES", 0, r"0; it must be at least 1"),
        ("HIDDEN_DIM", 18, r"18; it must be a multiple of 4"),
    ],
)
def test_impossible_choice_is_refused_by_key(key: str, value: object, message: str):
    with pytest.raises(ValueError, match=rf"MODEL\.MASK_FORMER\.{key}(:| is) {message}"):
        built({f"MODEL.MASK_FORMER.{key}": value})


def test_width_that_the_heads_cannot_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"HIDDEN_DIM is 16.*MODEL\.MASK_FORMER\.NHEADS, which is 3"):
        built({"MODEL.MASK_FORMER.NHEADS": 3})
