"""Label maps by tiles, with proof: the same labels as all scores at all pixels, whatever is left out."""

import pytest
import torch
from published_order import published_mask_logits, published_scores

from mask_former import label_maps, strips
from mask_former.inference import semantic_labels
from mask_former.label_maps import pruned_labels
from mask_former.strips import Sizes, mask_probs_at, mask_tiles

SIZES = [
    Sizes((8, 12), (8, 12), (8, 12)),
    Sizes((64, 96), (61, 90), (61, 90)),
    Sizes((64, 96), (61, 90), (37, 91)),
    Sizes((64, 96), (60, 96), (133, 161)),
    Sizes((64, 96), (61, 87), (61, 120)),
    Sizes((64, 96), (61, 87), (90, 87)),
]


def smooth_masks(queries, grid, seed, scale=6.0):
    """Blobs over some cells of the grid, as masks of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = scale * torch.randn(1, queries, grid[0] // 4 + 2, grid[1] // 4 + 2, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic")[0]


def random_logits(queries, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(queries, classes + 1, generator=generator)


def settled_logits(queries, classes, seed):
    """Two thirds of the queries say "no object", the others one class, as a trained model's do."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.rand(queries, classes, generator=generator)
    probs = rest / rest.sum(1, keepdim=True) * 0.01
    for query in range(0, queries, 3):
        probs[query] *= 10
        probs[query, torch.randint(classes, (), generator=generator)] = 0.9
    return torch.cat([probs, 1 - probs.sum(1, keepdim=True)], dim=1).log()


def assert_same_labels(class_logits, mask_logits, sizes, resize_logits=False):
    """The labels are those of the published order, except where rounding decides between two classes."""
    labels = semantic_labels(class_logits, mask_logits, sizes, resize_logits=resize_logits)
    scores = published_scores(class_logits.double(), mask_logits.double(), sizes, resize_logits)
    best = scores.amax(0)
    # In float64 a label must be within float32's rounding of the best; nearly everywhere it is the best.
    chosen = scores.gather(0, labels[None])[0]
    assert torch.all(chosen >= best * (1 - 1e-5))
    assert (labels == scores.argmax(0)).double().mean() > 0.999


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("predictions", [random_logits, settled_logits])
@pytest.mark.parametrize("classes", [3, 70])
def test_labels_equal_the_published_order(sizes, resize_logits, predictions, classes):
    grid = (sizes.padded[0] // 4, sizes.padded[1] // 4)
    for seed in range(3):
        masks = smooth_masks(21, grid, seed)
        assert_same_labels(predictions(21, classes, seed), masks, sizes, resize_logits)


@pytest.mark.parametrize("strip_numbers", [1, 700, 1 << 22])
def test_labels_do_not_depend_on_how_many_numbers_a_strip_has(strip_numbers, monkeypatch):
    sizes = SIZES[2]
    class_logits, masks = settled_logits(21, 30, 5), smooth_masks(21, (16, 24), 5)
    expected = semantic_labels(class_logits, masks, sizes)
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", strip_numbers)
    assert torch.equal(semantic_labels(class_logits, masks, sizes), expected)


@pytest.mark.parametrize("share", [0.0, 1.0, 1e9])
def test_leaving_out_more_queries_changes_no_label(share, monkeypatch):
    # With 1e9 all queries are left out, so that nearly every pixel has to be scored again.
    monkeypatch.setattr(label_maps, "SHARE_OF_LEAD", share)
    for seed in range(4):
        assert_same_labels(settled_logits(30, 40, seed), smooth_masks(30, (16, 24), seed), SIZES[1])


def test_masks_that_hardly_differ_leave_nothing_to_prove_by():
    # Scores of two classes cross within each tile, by less than a mask's range in it.
    ramp = torch.linspace(-0.5, 0.5, 24).expand(16, 24)
    masks = torch.stack([ramp, -ramp, 0.1 * ramp.flip(0)])
    probs = torch.tensor([[0.51, 0.49, 0.0], [0.49, 0.51, 0.0], [0.02, 0.02, 0.96]])
    assert_same_labels(probs.clamp(min=1e-9).log(), masks, Sizes((64, 96), (64, 96), (64, 96)))


def test_two_classes_that_are_always_equal_give_the_first():
    class_logits = settled_logits(12, 9, 0)
    class_logits[:, 7] = class_logits[:, 2] = class_logits[:, :-1].amax(1)
    labels = semantic_labels(class_logits, smooth_masks(12, (16, 24), 0), SIZES[1])
    assert torch.equal(labels, torch.full((61, 90), 2))


def test_numbers_that_are_none_do_not_stop_the_others():
    class_logits, masks = settled_logits(12, 9, 0), smooth_masks(12, (16, 24), 0)
    sizes = Sizes((64, 96), (64, 96), (64, 96))
    expected = semantic_labels(class_logits, masks, sizes)
    masks[:, :2, :2] = torch.nan
    labels = semantic_labels(class_logits, masks, sizes)
    assert torch.equal(labels[24:, 24:], expected[24:, 24:])


def test_tiles_with_one_possible_class_need_no_resized_mask(monkeypatch):
    scored = []

    def watched(logits, sizes, rows, *args, columns, **kwargs):
        found = mask_probs_at(logits, sizes, rows, *args, columns=columns, **kwargs)
        scored.append(found.shape[1] * found.shape[2])
        return found

    monkeypatch.setattr(label_maps, "mask_probs_at", watched)
    masks = torch.full((2, 16, 32), 8.0)
    masks[0, :, 12:], masks[1, :, :12] = -8.0, -8.0
    class_logits = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).log()
    sizes = Sizes((64, 128), (64, 128), (64, 128))
    labels = semantic_labels(class_logits, masks, sizes)
    assert torch.equal(labels, (torch.arange(128) >= 48).long().expand(64, -1))
    # Only tiles that touch the border, one on either side.
    assert 0 < sum(scored) <= 64 * 16


def test_queries_that_say_no_object_are_resized_only_where_the_others_do_not_decide(monkeypatch):
    resized = []

    def watched(*args, **kwargs):
        found = mask_probs_at(*args, **kwargs)
        resized.append(found.shape)
        return found

    monkeypatch.setattr(label_maps, "mask_probs_at", watched)
    probs = torch.full((30, 6), 0.002)
    probs[torch.arange(10), torch.arange(10) % 5] = 0.9
    probs[:, -1] += 1 - probs.sum(1)
    semantic_labels(probs.log(), smooth_masks(30, (16, 24), 1, scale=2.0), SIZES[1])
    pixels = {10: 0, 30: 0}
    for queries, rows, columns in resized:
        pixels[queries] += rows * columns
    assert pixels[30] < 0.05 * pixels[10] < 0.05 * 61 * 91


@pytest.mark.parametrize("sizes", SIZES)
def test_tiles_bound_the_logits_at_all_their_pixels(sizes):
    masks = smooth_masks(3, (sizes.padded[0] // 4, sizes.padded[1] // 4), 2)
    tiles = mask_tiles(masks, sizes)
    for resize_logits in (False, True):
        probs = published_mask_logits(masks, sizes, to_output=True).sigmoid()
        if not resize_logits:
            probs = published_mask_logits(masks, sizes, to_output=False).sigmoid()[None]
            probs = torch.nn.functional.interpolate(probs, size=sizes.output, mode="bilinear")[0]
        for y in range(sizes.output[0]):
            for x in range(sizes.output[1]):
                tile = (slice(None), y // tiles.height, x // tiles.width)
                assert (probs[:, y, x] >= tiles.low[tile].sigmoid() - 1e-6).all()
                assert (probs[:, y, x] <= tiles.high[tile].sigmoid() + 1e-6).all()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("resize_logits", [False, True])
def test_chosen_rows_columns_and_queries_are_those_of_the_whole(sizes, resize_logits):
    masks = smooth_masks(5, (sizes.padded[0] // 4, sizes.padded[1] // 4), 2)
    whole = mask_probs_at(masks, sizes, range(sizes.output[0]), resize_logits)
    columns, queries = torch.tensor([0, 3, 4, sizes.output[1] - 1]), torch.tensor([4, 1])
    some = mask_probs_at(masks, sizes, range(3, 6), resize_logits, queries=queries, columns=columns)
    assert torch.allclose(some, whole[queries][:, 3:6][..., columns], atol=1e-6)


def test_inputs_are_left_as_they_are():
    sizes = Sizes((16, 24), (16, 24), (16, 24))
    class_logits, masks = settled_logits(12, 9, 0), smooth_masks(12, (16, 24), 0)
    copies = class_logits.clone(), masks.clone()
    semantic_labels(class_logits, masks, sizes)
    assert torch.equal(class_logits, copies[0])
    assert torch.equal(masks, copies[1])


def test_class_probabilities_may_have_any_layout():
    probs = settled_logits(12, 9, 0).softmax(1)[:, :-1]
    masks = smooth_masks(12, (16, 24), 0)
    turned = probs.t().contiguous().t()
    assert torch.equal(pruned_labels(turned, masks, SIZES[1]), pruned_labels(probs, masks, SIZES[1]))
