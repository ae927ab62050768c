import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former.modeling.transformer import (
    DecoderLayer,
    EncoderLayer,
    LayerOptions,
    TransformerDecoder,
    TransformerEncoder,
    check_width,
    map_to_sequence,
    sequence_to_map,
    sine_positions,
)

POST_NORM = LayerOptions(12, num_heads=3, feedforward_channels=20, dropout=0.0, normalize_before=False)
PRE_NORM = POST_NORM._replace(normalize_before=True)
BOTH_ORDERS = pytest.mark.parametrize("options", [POST_NORM, PRE_NORM], ids=["post_norm", "pre_norm"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize(module: nn.Module) -> nn.Module:
    """Make every vector count: norms are ones and zeros, and biases zeros, when they are new."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def positions_by_loop(channels: int, height: int, width: int) -> Tensor:
    half = channels // 2
    positions = torch.zeros(channels, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for offset, place, length in ((0, y + 1, height), (half, x + 1, width)):
                for i in range(half):
                    angle = place / (length + 1e-6) * 2 * math.pi / 10000 ** (2 * (i // 2) / half)
                    positions[offset + i, y, x] = math.cos(angle) if i % 2 else math.sin(angle)
    return positions


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (7, 2)])
def test_sine_positions_are_the_formula_at_every_pixel(size: tuple[int, int]):
    positions = sine_positions(torch.empty(2, 12, *size))
    expected = positions_by_loop(12, *size).flatten(1).T[None]
    assert positions.shape == (1, size[0] * size[1], 12)
    # Sines of float32 angles of up to 2 pi.
    torch.testing.assert_close(positions.double(), expected, atol=2e-6, rtol=0)


def test_sine_positions_of_a_known_size_come_from_the_cache():
    first = sine_positions(torch.empty(1, 8, 5, 6))
    assert sine_positions(torch.empty(3, 8, 5, 6)) is first
    assert sine_positions(torch.empty(1, 8, 6, 5)) is not first
    assert sine_positions(torch.empty(1, 8, 5, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sine_positions_made_in_inference_mode_serve_in_training():
    with torch.inference_mode():
        positions = sine_positions(torch.empty(1, 8, 9, 11))
    weight = torch.ones(8, requires_grad=True)
    (positions * weight).sum().backward()
    torch.testing.assert_close(weight.grad, positions.sum(dim=(0, 1)))


def test_sequences_are_maps_row_by_row():
    features = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    sequence = map_to_sequence(features)
    assert torch.equal(sequence[1, 2 * 5 + 3], features[1, :, 2, 3])
    assert torch.equal(sequence_to_map(sequence, 4, 5), features)


@BOTH_ORDERS
def test_encoder_layer_without_positions_is_the_layer_of_torch(options: LayerOptions):
    layer = randomize(EncoderLayer(options)).eval()
    torch_layer = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, batch_first=True, norm_first=options.normalize_before
    )
    torch_layer.load_state_dict(layer.state_dict())
    states = torch.randn(2, 7, 12)
    # torch_layer stays in training mode, away from its own fast path.
    torch.testing.assert_close(layer(states, torch.zeros(1, 7, 12)), torch_layer(states))


@BOTH_ORDERS
def test_decoder_layer_without_positions_is_the_layer_of_torch(options: LayerOptions):
    layer = randomize(DecoderLayer(options)).eval()
    torch_layer = nn.TransformerDecoderLayer(
        12, 3, 20, dropout=0.0, batch_first=True, norm_first=options.normalize_before
    )
    torch_layer.load_state_dict(layer.state_dict())
    states, memory = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(
        layer(states, torch.zeros(1, 4, 12), memory, memory), torch_layer(states, memory)
    )


def attention_by_hand(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend image by image, head by head and query by query."""
    width = module.embed_dim // module.num_heads
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    joined = torch.zeros_like(q)
    for image in range(q.shape[0]):
        for head in range(module.num_heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(q.shape[1]):
                scores = torch.stack([q[image, i, part] @ row for row in k[image, :, part]]) / width**0.5
                share = scores.exp() / scores.exp().sum()
                joined[image, i, part] = share @ v[image, :, part]
    return joined @ module.out_proj.weight.T + module.out_proj.bias


def test_encoder_layer_adds_positions_to_queries_and_keys_only():
    layer = randomize(EncoderLayer(POST_NORM)).eval()
    states, positions = torch.randn(2, 5, 12), torch.randn(1, 5, 12)
    placed = states + positions
    x = layer.norm1(states + attention_by_hand(layer.self_attn, placed, placed, states))
    x = layer.norm2(x + layer.linear2(layer.linear1(x).clamp(min=0)))
    torch.testing.assert_close(layer(states, positions), x, atol=1e-5, rtol=1e-5)


def test_decoder_layer_attends_to_queries_then_to_the_memory():
    layer = randomize(DecoderLayer(POST_NORM)).eval()
    states, positions = torch.randn(2, 4, 12), torch.randn(1, 4, 12)
    keys, values = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    placed = states + positions
    x = layer.norm1(states + attention_by_hand(layer.self_attn, placed, placed, states))
    x = layer.norm2(x + attention_by_hand(layer.multihead_attn, x + positions, keys, values))
    x = layer.norm3(x + layer.linear2(layer.linear1(x).clamp(min=0)))
    torch.testing.assert_close(layer(states, positions, keys, values), x, atol=1e-5, rtol=1e-5)


def test_encoder_runs_its_layers_with_the_positions_of_the_map():
    encoder = randomize(TransformerEncoder(2, PRE_NORM)).eval()
    features = torch.randn(2, 12, 3, 5)
    states = features.flatten(2).transpose(1, 2)
    positions = positions_by_loop(12, 3, 5).float().flatten(1).T[None]
    for layer in encoder.layers:
        states = layer(states, positions)
    expected = encoder.norm(states).transpose(1, 2).reshape(2, 12, 3, 5)
    torch.testing.assert_close(encoder(features), expected, atol=1e-5, rtol=1e-5)


def test_decoder_starts_from_zeros_and_norms_every_layer_alike():
    decoder = randomize(TransformerDecoder(3, POST_NORM)).eval()
    queries, memory = torch.randn(4, 12), torch.randn(2, 12, 3, 5)
    values = memory.flatten(2).transpose(1, 2)
    keys = values + positions_by_loop(12, 3, 5).float().flatten(1).T[None]
    states = torch.zeros(2, 4, 12)
    expected = []
    for layer in decoder.layers:
        states = layer(states, queries[None], keys, values)
        expected.append(decoder.norm(states))
    torch.testing.assert_close(decoder(queries, memory), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("options", "has_norm"), [(POST_NORM, False), (PRE_NORM, True)])
def test_only_the_encoder_that_norms_before_has_a_last_norm(options: LayerOptions, has_norm: bool):
    assert ("norm.weight" in TransformerEncoder(1, options).state_dict()) is has_norm
    assert "norm.weight" in TransformerDecoder(1, options).state_dict()


def test_matrices_are_drawn_from_xaviers_uniform_distribution():
    for name, parameter in TransformerDecoder(1, POST_NORM).named_parameters():
        if parameter.dim() > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_batch_of_two_equals_singles():
    encoder = TransformerEncoder(2, POST_NORM).eval()
    decoder = TransformerDecoder(2, POST_NORM).eval()
    queries, features = torch.randn(4, 12), torch.randn(2, 12, 3, 5)
    both = decoder(queries, encoder(features))[-1]
    for i in range(2):
        single = decoder(queries, encoder(features[i : i + 1]))[-1]
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only():
    decoder = TransformerDecoder(1, POST_NORM._replace(dropout=0.5))
    queries, memory = torch.randn(4, 12), torch.randn(1, 12, 3, 5)
    assert not torch.equal(decoder(queries, memory)[-1], decoder(queries, memory)[-1])
    decoder.eval()
    assert torch.equal(decoder(queries, memory)[-1], decoder(queries, memory)[-1])


class Operations(TorchDispatchMode):
    """Collects the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_forward_computes_no_attention_weights(with_gradient: bool):
    encoder, decoder = TransformerEncoder(1, POST_NORM).eval(), TransformerDecoder(1, POST_NORM).eval()
    with torch.set_grad_enabled(with_gradient), Operations() as operations:
        decoder(torch.randn(4, 12), encoder(torch.randn(1, 12, 3, 5)))
    assert any("scaled_dot_product" in name for name in operations.names)
    assert not any("softmax" in name or "_native_multi_head" in name for name in operations.names)


@pytest.mark.parametrize(("channels", "heads"), [(20, 8), (18, 3), (0, 8)])
def test_width_that_does_not_divide_is_refused_by_key(channels: int, heads: int):
    with pytest.raises(ValueError, match=rf"MODEL\.X is {channels}.*NHEADS, which is {heads}"):
        check_width(channels, heads, "MODEL.X")


@pytest.mark.parametrize("largest_logit", [1e3, 1e5])
def test_gradients_vanish_where_attention_is_saturated(largest_logit: float):
    options = LayerOptions(64, num_heads=1, feedforward_channels=20, dropout=0.0, normalize_before=False)
    layer = randomize(EncoderLayer(options))
    states = F.normalize(torch.randn(1, 49, 64), dim=2)
    with torch.no_grad():
        # Queries and keys are multiples of the states, so that each position attends to itself alone: the
        # weights of the others are exp(-200) and less.
        layer.self_attn.in_proj_weight[:128] = torch.eye(64).repeat(2, 1) * (8 * largest_logit) ** 0.5
        layer.self_attn.in_proj_bias.zero_()
    layer(states, torch.zeros(1, 49, 64)).sin().sum().backward()
    of_queries_and_keys, of_values = layer.self_attn.in_proj_weight.grad.split([128, 64])
    assert of_values.norm() > 1
    assert of_queries_and_keys.abs().max() == 0
