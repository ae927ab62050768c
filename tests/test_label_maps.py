"""Label maps with proof: the same labels as all scores at all pixels, whatever is left out."""

import pytest
import torch
from published_order import published_mask_logits, published_scores

from mask_former.inference import label_blocks, label_maps, strips
from mask_former.inference.label_maps import pruned_labels
from mask_former.inference.resizing import Sizes, values_at, windows
from mask_former.inference.strips import mask_probs_at

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


def labels_of(class_logits, mask_logits, sizes, resize_logits=False):
    class_probs = class_logits.softmax(1)[:, :-1]
    return pruned_labels(class_probs, mask_logits, sizes, resize_logits=resize_logits)


def assert_same_labels(class_logits, mask_logits, sizes, resize_logits=False):
    """The labels are those of the published order, except where rounding decides between two classes."""
    labels = labels_of(class_logits, mask_logits, sizes, resize_logits)
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
    expected = labels_of(class_logits, masks, sizes)
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", strip_numbers)
    assert torch.equal(labels_of(class_logits, masks, sizes), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_resizing_fewer_masks_at_first_changes_no_label(share, monkeypatch):
    # With 1 all masks are left out at first, so that every pixel in doubt has to be scored with all of them.
    monkeypatch.setattr(label_maps, "ERROR_SHARE", share)
    for seed in range(4):
        assert_same_labels(settled_logits(30, 40, seed), smooth_masks(30, (16, 24), seed), SIZES[1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_noisy_masks_and_any_choice_of_rows_give_the_labels_of_all_scores(share, monkeypatch):
    monkeypatch.setattr(label_maps, "UNDECIDED_SHARE", share)
    generator = torch.Generator().manual_seed(3)
    masks = smooth_masks(60, (32, 44), 1)
    masks[..., 22:] += 3 * torch.randn(60, 32, 22, generator=generator)
    sizes = Sizes((128, 176), (128, 170), (128, 170))
    assert_same_labels(settled_logits(60, 40, 2), masks, sizes)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
@pytest.mark.parametrize("many_classes", [0, 4, 1000])
def test_labels_do_not_depend_on_how_the_picture_is_cut(block, many_classes, monkeypatch):
    monkeypatch.setattr(label_blocks, "BLOCK", block)
    monkeypatch.setattr(label_blocks, "ROW_NUMBERS", block * block * 21)
    monkeypatch.setattr(label_maps, "MANY_CLASSES", many_classes)
    monkeypatch.setattr(label_blocks, "MANY_CLASSES", many_classes)
    for sizes in (SIZES[1], SIZES[2]):
        masks = smooth_masks(21, (16, 24), 7)
        for predictions in (settled_logits, random_logits):
            assert_same_labels(predictions(21, 30, 7), masks, sizes)


def test_sharp_borders_between_segments():
    # Like a trained model's masks: each query has its own region, and nothing in between says much.
    generator = torch.Generator().manual_seed(4)
    centres = torch.rand(10, 2, generator=generator) * torch.tensor([32.0, 48.0])
    row, column = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    distance = (row - centres[:, 0, None, None]).hypot(column - centres[:, 1, None, None])
    masks = torch.full((30, 32, 48), -6.0)
    others = torch.stack([distance[torch.arange(10) != query].amin(0) for query in range(10)])
    masks[::3] = (1.5 * (others - distance)).clamp(-10, 8)
    for resize_logits in (False, True):
        for sizes in (Sizes((128, 192), (128, 192), (128, 192)), Sizes((128, 192), (119, 190), (150, 171))):
            assert_same_labels(settled_logits(30, 200, 4), masks, sizes, resize_logits)


def test_masks_that_hardly_differ_leave_nothing_to_prove_by():
    # Scores of two classes cross within each tile, by less than a mask's range in it.
    ramp = torch.linspace(-0.5, 0.5, 24).expand(16, 24)
    masks = torch.stack([ramp, -ramp, 0.1 * ramp.flip(0)])
    probs = torch.tensor([[0.51, 0.49, 0.0], [0.49, 0.51, 0.0], [0.02, 0.02, 0.96]])
    assert_same_labels(probs.clamp(min=1e-9).log(), masks, Sizes((64, 96), (64, 96), (64, 96)))


def test_two_classes_that_are_always_equal_give_the_first():
    class_logits = settled_logits(12, 9, 0)
    class_logits[:, 7] = class_logits[:, 2] = class_logits[:, :-1].amax(1)
    labels = labels_of(class_logits, smooth_masks(12, (16, 24), 0), SIZES[1])
    assert torch.equal(labels, torch.full((61, 90), 2))


def test_numbers_that_are_none_do_not_stop_the_others():
    class_logits, masks = settled_logits(12, 9, 0), smooth_masks(12, (16, 24), 0)
    sizes = Sizes((64, 96), (64, 96), (64, 96))
    expected = labels_of(class_logits, masks, sizes)
    masks[:, :2, :2] = torch.nan
    labels = labels_of(class_logits, masks, sizes)
    assert torch.equal(labels[24:, 24:], expected[24:, 24:])


@pytest.fixture
def resized(monkeypatch):
    """Pairs of how many maps were resized, at how many pixels."""
    found = []

    def watched(maps, *args):
        values = values_at(maps, *args)
        found.append(tuple(values.shape))
        return values

    monkeypatch.setattr(label_maps, "values_at", watched)
    return found


def test_only_pixels_at_borders_are_looked_at_one_by_one(resized):
    masks = torch.full((2, 16, 32), 8.0)
    masks[0, :, 12:], masks[1, :, :12] = -8.0, -8.0
    class_logits = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).log()
    sizes = Sizes((64, 128), (64, 128), (64, 128))
    labels = labels_of(class_logits, masks, sizes)
    assert torch.equal(labels, (torch.arange(128) >= 48).long().expand(64, -1))
    # One window, four pixels wide, has both classes.
    assert 0 < max(pixels for _, pixels in resized) <= 64 * 4


def test_few_masks_are_resized_and_few_pixels_need_all(resized):
    probs = torch.full((30, 6), 0.002)
    probs[torch.arange(10), torch.arange(10) % 5] = 0.9
    probs[:, -1] += 1 - probs.sum(1)
    assert_same_labels(probs.log(), smooth_masks(30, (16, 24), 1, scale=2.0), SIZES[1])
    pixels_of_all = sum(pixels for maps, pixels in resized if maps == 30)
    pixels_of_some = sum(pixels for maps, pixels in resized if 5 < maps < 30)
    assert pixels_of_all < 0.05 * pixels_of_some < 0.05 * 61 * 90


@pytest.mark.parametrize("sizes", SIZES)
def test_windows_hold_all_cells_that_a_pixel_is_made_of(sizes):
    grid = (sizes.padded[0] // 4, sizes.padded[1] // 4)
    masks = smooth_masks(3, grid, 2)
    rows, columns = (windows(sizes, axis, grid[axis]) for axis in (0, 1))
    whole = published_mask_logits(masks, sizes, to_output=True)
    for y in range(sizes.output[0]):
        for x in range(sizes.output[1]):
            cells = masks[:, rows.first[y] : rows.first[y] + rows.length]
            cells = cells[:, :, columns.first[x] : columns.first[x] + columns.length]
            assert (whole[:, y, x] >= cells.amin((1, 2)) - 1e-5).all()
            assert (whole[:, y, x] <= cells.amax((1, 2)) + 1e-5).all()


@pytest.mark.parametrize("sizes", SIZES)
def test_values_at_pixels_are_those_of_whole_maps(sizes):
    grid = (sizes.padded[0] // 4, sizes.padded[1] // 4)
    masks = smooth_masks(5, grid, 2)
    rows, columns = (windows(sizes, axis, grid[axis]) for axis in (0, 1))
    pixels = torch.tensor([3, 5, sizes.output[0] - 1]), torch.tensor([0, 4, sizes.output[1] - 1])
    first_row, first_column = (int(side.first[0]) for side in (rows, columns))
    there = (masks[:, first_row:, first_column:], (first_row, first_column), grid, sizes, pixels)
    resized = published_mask_logits(masks, sizes, to_output=True)
    assert torch.allclose(values_at(*there), resized[:, pixels[0], pixels[1]], atol=1e-5)
    probs = mask_probs_at(masks, sizes, range(sizes.output[0]), resize_logits=False)
    assert torch.allclose(values_at(*there, torch.sigmoid), probs[:, pixels[0], pixels[1]], atol=1e-5)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("classes", [1, 2])
def test_one_query_or_one_class_will_do(queries, classes):
    assert_same_labels(random_logits(queries, classes, 0), smooth_masks(queries, (16, 24), 0), SIZES[2])


@pytest.mark.parametrize("resize_logits", [False, True])
def test_small_and_large_outputs_of_a_picture(resize_logits):
    for output in ((5, 7), (9, 190), (300, 8), (400, 500)):
        sizes = Sizes((128, 192), (120, 190), output)
        for predictions in (settled_logits, random_logits):
            assert_same_labels(predictions(21, 30, 7), smooth_masks(21, (32, 48), 7), sizes, resize_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_are_those_of_the_same_numbers(dtype):
    probs = settled_logits(12, 9, 0).softmax(1)[:, :-1]
    masks = smooth_masks(12, (16, 24), 0).to(dtype)
    assert torch.equal(pruned_labels(probs, masks, SIZES[1]), pruned_labels(probs, masks.float(), SIZES[1]))


def test_inputs_are_left_as_they_are():
    sizes = Sizes((16, 24), (16, 24), (16, 24))
    class_logits, masks = settled_logits(12, 9, 0), smooth_masks(12, (16, 24), 0)
    copies = class_logits.clone(), masks.clone()
    labels_of(class_logits, masks, sizes)
    assert torch.equal(class_logits, copies[0])
    assert torch.equal(masks, copies[1])


def test_class_probabilities_may_have_any_layout():
    probs = settled_logits(12, 9, 0).softmax(1)[:, :-1]
    masks = smooth_masks(12, (16, 24), 0)
    turned = probs.t().contiguous().t()
    assert torch.equal(pruned_labels(turned, masks, SIZES[1]), pruned_labels(probs, masks, SIZES[1]))
