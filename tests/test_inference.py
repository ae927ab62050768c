"""Results of one picture from its logits: every rule on hand-drawn cases, and against the published order."""

import pytest
import torch
from published_order import published_mask_logits, published_scores
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former import inference
from mask_former.inference import ResultRules, semantic_labels, semantic_scores, strips
from mask_former.inference.resizing import Sizes

# (padded, image, output): nothing to do; crop only; shrink; grow; odd sizes, only one side changes.
SIZES = [
    Sizes((8, 12), (8, 12), (8, 12)),
    Sizes((32, 64), (29, 41), (29, 41)),
    Sizes((32, 64), (29, 41), (17, 23)),
    Sizes((32, 64), (30, 64), (71, 90)),
    Sizes((32, 64), (31, 50), (31, 77)),
    Sizes((32, 64), (31, 50), (45, 50)),
    Sizes((36, 20), (33, 19), (7, 133)),
]


def sizes_of(masks):
    return Sizes(*[tuple(masks.shape[-2:])] * 3)


def panoptic(class_logits, mask_logits, sizes, **rules):
    return inference.panoptic(class_logits, mask_logits, sizes, ResultRules(**rules))


def instances(class_logits, mask_logits, sizes, **rules):
    return inference.instances(class_logits, mask_logits, sizes, ResultRules(**rules))


def class_logits_of(*rows):
    """Logits whose softmax is the given probabilities, one row a query, "no object" last."""
    return torch.tensor(rows).log()


def mask_logits_of(*drawings, yes=0.9, no=0.1):
    """Logits of masks drawn as rows of characters: '#' has probability `yes`, '.' has `no`, digits tenths."""
    table = {"#": yes, ".": no, **{str(d): d / 10 for d in range(1, 10)}}
    probs = [[[table[c] for c in row] for row in drawing.split()] for drawing in drawings]
    return torch.tensor(probs, dtype=torch.float64).logit().float()


def random_logits(queries=5, classes=4, grid=(8, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(queries, classes + 1, generator=generator)
    return class_logits, 4 * torch.randn(queries, *grid, generator=generator)


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor):
                self.numbers = max(self.numbers, item.untyped_storage().nbytes() // item.element_size())
        return result


# Semantic ---------------------------------------------------------------------------------------------


def test_score_is_the_sum_over_queries_of_class_times_mask_probability():
    class_logits, mask_logits = random_logits(queries=3, classes=2, grid=(4, 5))
    scores = semantic_scores(class_logits, mask_logits, sizes_of(mask_logits))
    for k in range(2):
        for y in range(4):
            for x in range(5):
                expected = 0.0
                for q in range(3):
                    weights = [class_logits[q, c].exp().item() for c in range(3)]
                    expected += weights[k] / sum(weights) / (1 + (-mask_logits[q, y, x]).exp().item())
                assert scores[k, y, x].item() == pytest.approx(expected, rel=1e-5)


def test_scores_are_neither_renormalised_nor_capped():
    # Two queries sure of class 0 everywhere: the score is about 2.
    scores = semantic_scores(
        class_logits_of([0.98, 0.01, 0.01], [0.98, 0.01, 0.01]),
        torch.full((2, 3, 4), 20.0),
        Sizes(*[(3, 4)] * 3),
    )
    assert torch.allclose(scores[0], torch.full((3, 4), 1.96))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("strip_numbers", [1, 900, 1 << 22])
def test_scores_by_strips_equal_the_published_order_on_whole_maps(
    sizes, resize_logits, strip_numbers, monkeypatch
):
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", strip_numbers)
    class_logits, mask_logits = random_logits(grid=(sizes.padded[0] // 4, sizes.padded[1] // 4))
    scores = semantic_scores(class_logits, mask_logits, sizes, resize_logits=resize_logits)
    expected = published_scores(class_logits, mask_logits, sizes, resize_logits)
    # A few roundings of logits around 4 and sums around 1.
    assert torch.allclose(scores, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("strip_numbers", [1, 900, 1 << 22])
def test_labels_are_the_highest_published_score(sizes, resize_logits, strip_numbers, monkeypatch):
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", strip_numbers)
    class_logits, mask_logits = random_logits(grid=(sizes.padded[0] // 4, sizes.padded[1] // 4), seed=1)
    labels = semantic_labels(class_logits, mask_logits, sizes, resize_logits=resize_logits)
    expected = published_scores(class_logits, mask_logits, sizes, resize_logits)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected.argmax(0))


def test_a_label_of_equal_scores_is_the_first_class():
    labels = semantic_labels(
        class_logits_of([0.2, 0.35, 0.35, 0.1]), torch.zeros(1, 2, 3), Sizes(*[(2, 3)] * 3)
    )
    assert torch.equal(labels, torch.ones(2, 3, dtype=torch.int64))


def test_no_object_is_never_a_label():
    labels = semantic_labels(
        class_logits_of([0.01, 0.02, 0.97]), torch.full((1, 2, 3), -9.0), Sizes(*[(2, 3)] * 3)
    )
    assert torch.equal(labels, torch.ones(2, 3, dtype=torch.int64))


def test_the_memory_of_labels_does_not_grow_with_classes():
    sizes = Sizes((256, 512), (256, 500), (300, 600))
    largest = {}
    for classes in (20, 847):
        class_logits, mask_logits = random_logits(10, classes, (64, 128))
        with LargestTensor() as watch:
            semantic_labels(class_logits, mask_logits, sizes)
        largest[classes] = watch.numbers
    assert largest[847] <= max(1.1 * largest[20], strips._STRIP_NUMBERS["cpu"])
    assert largest[847] < 847 * 300 * 600 / 100


def test_strips_stay_small_where_the_output_is_smaller_than_the_picture():
    class_logits, mask_logits = random_logits(30, 5, (64, 128))
    sizes = Sizes((256, 512), (250, 512), (16, 32))
    expected = published_scores(class_logits, mask_logits, sizes, False)
    with LargestTensor() as watch:
        scores = semantic_scores(class_logits, mask_logits, sizes)
    assert watch.numbers <= strips._STRIP_NUMBERS["cpu"] < 30 * 250 * 512
    assert torch.allclose(scores, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    class_logits, mask_logits = (logits.to(dtype) for logits in random_logits())
    sizes = SIZES[2]
    expected = semantic_scores(class_logits.float(), mask_logits.float(), sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = semantic_scores(class_logits, mask_logits, sizes)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


# Panoptic ---------------------------------------------------------------------------------------------


def slow_panoptic(class_logits, mask_probs, thing_ids, object_mask_threshold, overlap_threshold):
    """The published rule, pixel by pixel."""
    num_classes = class_logits.shape[1] - 1
    kept = []
    for q, probs in enumerate(class_logits.softmax(1).tolist()):
        label = probs.index(max(probs))
        if label != num_classes and probs[label] > object_mask_threshold:
            kept.append((q, probs[label], label))
    height, width = mask_probs.shape[1:]
    ids, segments, stuff = [[0] * width for _ in range(height)], [], {}
    pixels = [(y, x) for y in range(height) for x in range(width)]
    owner = {
        (y, x): max(kept, key=lambda item: item[1] * mask_probs[item[0], y, x].item())[0]
        for y, x in pixels
        if kept
    }
    for q, _, label in kept:
        won = [pixel for pixel in pixels if owner[pixel] == q]
        mask_area = sum(mask_probs[q, y, x].item() >= 0.5 for y, x in pixels)
        if not won or not mask_area or len(won) / mask_area < overlap_threshold:
            continue
        if label in stuff:
            segment_id = stuff[label]
        else:
            segment_id = len(segments) + 1
            segments.append((segment_id, label in thing_ids, label))
            if label not in thing_ids:
                stuff[label] = segment_id
        for y, x in won:
            ids[y][x] = segment_id
    return torch.tensor(ids), segments


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("object_mask_threshold", "overlap_threshold"), [(0.0, 0.0), (0.5, 0.3), (0.8, 0.8)])
def test_panoptic_equals_the_rule_pixel_by_pixel(seed, object_mask_threshold, overlap_threshold, monkeypatch):
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", 200)
    class_logits, mask_logits = random_logits(queries=9, classes=3, grid=(6, 7), seed=seed)
    sizes = Sizes((24, 28), (21, 26), (13, 17))
    probs = published_mask_logits(mask_logits, sizes, to_output=True).sigmoid()
    expected, expected_segments = slow_panoptic(
        class_logits, probs, {0, 2}, object_mask_threshold, overlap_threshold
    )
    ids, segments = panoptic(
        class_logits,
        mask_logits,
        sizes,
        thing_ids={0, 2},
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
    )
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), expected)
    assert [(s["id"], s["isthing"], s["category_id"]) for s in segments] == expected_segments
    assert [s["area"] for s in segments] == [int((expected == s["id"]).sum()) for s in segments]


def draw(ids):
    return " ".join("".join(str(i) for i in row) for row in ids.tolist())


def test_segments_carry_id_class_score_and_area():
    masks = mask_logits_of("###. ###. ....", ".... .... .###")
    ids, segments = panoptic(
        class_logits_of([0.1, 0.8, 0.1], [0.7, 0.2, 0.1]), masks, sizes_of(masks), thing_ids={1}
    )
    assert draw(ids) == "1111 1111 1222"  # on the background 0.8 * 0.1 beats 0.7 * 0.1
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 1, "score": pytest.approx(0.8), "area": 9},
        {"id": 2, "isthing": False, "category_id": 0, "score": pytest.approx(0.7), "area": 3},
    ]


def test_a_pixel_of_two_equal_queries_goes_to_the_first():
    masks = mask_logits_of("##.. ##..", ".##. .##.", "...# ...#")
    logits = class_logits_of([0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "1123 1123"
    assert [s["area"] for s in segments] == [4, 2, 2]


def test_of_two_identical_queries_the_second_wins_no_pixel_and_gets_no_segment():
    masks = mask_logits_of("#### ####", "#### ####", "...# ...#")
    logits = class_logits_of([0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.9, 0.05, 0.05])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "1112 1112"
    assert [s["id"] for s in segments] == [1, 2]


def test_a_higher_class_score_wins_the_overlap():
    masks = mask_logits_of("####", "..##")
    logits = class_logits_of([0.6, 0.2, 0.2], [0.1, 0.8, 0.1])
    ids, _ = panoptic(logits, masks, sizes_of(masks), thing_ids={0, 1})
    assert draw(ids) == "1122"


@pytest.mark.parametrize(
    ("overlap_threshold", "drawing", "classes"), [(0.5, "1122", [0, 1]), (0.51, "0011", [1])]
)
def test_a_segment_is_dropped_below_the_overlap_threshold_and_kept_at_it(overlap_threshold, drawing, classes):
    # Query 0 has four pixels and wins two: a share of exactly one half. Dropped, what it won stays void.
    masks = mask_logits_of("####", "..##")
    logits = class_logits_of([0.6, 0.2, 0.2], [0.1, 0.8, 0.1])
    ids, segments = panoptic(
        logits, masks, sizes_of(masks), thing_ids={0, 1}, overlap_threshold=overlap_threshold
    )
    assert draw(ids) == drawing
    assert [s["category_id"] for s in segments] == classes


@pytest.mark.parametrize(("threshold", "found"), [(0.49, 1), (0.5, 0)])
def test_a_query_must_exceed_the_object_threshold(threshold, found):
    # 0.5 of two equal classes is exact in floating point.
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    _, segments = panoptic(
        logits,
        torch.full((1, 2, 3), 5.0),
        Sizes(*[(2, 3)] * 3),
        thing_ids=(),
        object_mask_threshold=threshold,
    )
    assert len(segments) == found


def test_a_query_that_says_no_object_is_left_out_however_sure_its_mask():
    masks = mask_logits_of("####", "##..")
    logits = class_logits_of([0.1, 0.1, 0.8], [0.5, 0.1, 0.4])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids=())
    assert draw(ids) == "1111"
    assert len(segments) == 1


@pytest.mark.parametrize("queries", [0, 3])
def test_nothing_kept_gives_an_empty_map_of_the_output_size(queries):
    logits = class_logits_of(*[[0.2, 0.2, 0.6]] * 3)[:queries]
    ids, segments = panoptic(
        logits, torch.zeros(queries, 4, 4), Sizes((16, 16), (15, 13), (7, 9)), thing_ids={0}
    )
    assert ids.shape == (7, 9)
    assert ids.dtype == torch.int32
    assert not ids.any()
    assert segments == []


def test_segments_of_a_stuff_class_become_one():
    masks = mask_logits_of("##.... ##....", "..##.. ..##..", "....## ....##")
    logits = class_logits_of([0.1, 0.7, 0.2], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "112211 112211"
    assert segments == [
        {"id": 1, "isthing": False, "category_id": 1, "score": pytest.approx(0.9), "area": 8},
        {"id": 2, "isthing": True, "category_id": 0, "score": pytest.approx(0.8), "area": 4},
    ]


def test_segments_of_a_thing_class_stay_apart():
    masks = mask_logits_of("##.. ##..", "..## ..##")
    logits = class_logits_of([0.8, 0.1, 0.1], [0.8, 0.1, 0.1])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "1122 1122"
    assert [s["isthing"] for s in segments] == [True, True]


def test_stuff_that_is_dropped_is_not_merged():
    # Query 1 (stuff, class 1, as query 0) has four pixels and wins one.
    masks = mask_logits_of("##....", "..####", "...###")
    logits = class_logits_of([0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.9, 0.05, 0.05])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0}, overlap_threshold=0.8)
    assert draw(ids) == "110222"
    assert [s["area"] for s in segments] == [2, 3]


def test_pixels_won_below_one_half_are_painted():
    masks = mask_logits_of("#44. #44.", no=0.05)
    ids, segments = panoptic(class_logits_of([0.8, 0.1, 0.1]), masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "1111 1111"
    assert segments[0]["area"] == 8


def test_a_query_without_a_pixel_of_one_half_is_dropped_and_its_pixels_are_void():
    masks = mask_logits_of("##..", "..44", no=0.05)
    logits = class_logits_of([0.8, 0.1, 0.1], [0.8, 0.1, 0.1])
    ids, segments = panoptic(logits, masks, sizes_of(masks), thing_ids={0})
    assert draw(ids) == "1100"
    assert len(segments) == 1


def test_one_half_exactly_belongs_to_the_mask():
    # Pixels at probability 0.5 count into the mask: two of four won is a share of one half.
    masks = torch.zeros(2, 1, 4)
    masks[1, 0] = torch.tensor([-9.0, -9.0, 9.0, 9.0])
    logits = class_logits_of([0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    options = {"thing_ids": {0, 1}, "overlap_threshold": 0.51}
    ids, _ = panoptic(logits, masks, sizes_of(masks), **options)
    assert draw(ids) == "0011"


def test_permuting_queries_changes_only_the_ids():
    class_logits, mask_logits = random_logits(queries=8, classes=3, grid=(6, 7), seed=3)
    sizes = Sizes((24, 28), (24, 28), (24, 28))
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    ids, segments = panoptic(class_logits, mask_logits, sizes, thing_ids={0, 1}, overlap_threshold=0.2)
    ids_2, segments_2 = panoptic(
        class_logits[order], mask_logits[order], sizes, thing_ids={0, 1}, overlap_threshold=0.2
    )
    assert len(segments) == len(segments_2) > 2
    for segment in segments:
        (same,) = [s for s in segments_2 if torch.equal(ids_2 == s["id"], ids == segment["id"])]
        assert {**same, "id": 0} == {**segment, "id": 0}


def test_only_kept_queries_are_resized():
    class_logits = torch.zeros(40, 3)
    class_logits[:, 2] = 9.0  # no object, but for the last
    class_logits[-1] = torch.tensor([9.0, 0.0, 0.0])
    sizes = Sizes((64, 96), (64, 96), (64, 96))
    mask_logits = torch.ones(40, 16, 24)
    with LargestTensor() as watch:
        panoptic(class_logits, mask_logits, sizes, thing_ids={0})
    assert watch.numbers <= 64 * 96


# Instances --------------------------------------------------------------------------------------------


def test_the_score_is_class_times_mean_mask_probability_inside_the_mask():
    masks = mask_logits_of("98.. 76..")
    found = instances(class_logits_of([0.6, 0.1, 0.3]), masks, sizes_of(masks), top_k=1)
    assert found.scores.item() == pytest.approx(0.6 * (0.9 + 0.8 + 0.7 + 0.6) / 4)
    assert found.pred_classes.tolist() == [0]


def test_masks_are_above_one_half_and_boxes_hold_them():
    masks = mask_logits_of("...... ..###. ...#.. ......", "#..... ...... ...... .....#")
    found = instances(class_logits_of([0.9, 0.1], [0.8, 0.2]), masks, sizes_of(masks), top_k=5)
    assert found.image_size == (4, 6)
    assert found.pred_masks.dtype == torch.bool
    assert torch.equal(found.pred_masks, masks > 0)
    assert found.pred_boxes.tensor.tolist() == [[2.0, 1.0, 5.0, 3.0], [0.0, 0.0, 6.0, 4.0]]


def test_top_k_counts_pairs_of_query_and_class():
    masks = mask_logits_of("#.", ".#")
    logits = class_logits_of([0.5, 0.4, 0.1], [0.3, 0.25, 0.45])
    found = instances(logits, masks, sizes_of(masks), top_k=3)
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_masks.flatten(1).tolist() == [[True, False], [True, False], [False, True]]
    assert found.scores.tolist() == pytest.approx([0.45, 0.36, 0.27])


def test_pairs_are_chosen_by_class_probability_and_returned_best_first():
    # Query 0 has the higher class probability but the weaker mask; query 2 is not chosen at all.
    masks = mask_logits_of("6.", ".9", "99")
    logits = class_logits_of([0.8, 0.2], [0.7, 0.3], [0.6, 0.4])
    found = instances(logits, masks, sizes_of(masks), top_k=2)
    assert found.scores.tolist() == pytest.approx([0.63, 0.48])
    assert found.pred_masks.flatten(1).tolist() == [[False, True], [True, False]]


def test_only_thing_classes_become_instances():
    masks = mask_logits_of("#.", ".#")
    logits = class_logits_of([0.12, 0.7, 0.08, 0.1], [0.05, 0.6, 0.25, 0.1])
    found = instances(logits, masks, sizes_of(masks), top_k=2, thing_ids={0, 2})
    assert found.pred_classes.tolist() == [2, 0]
    assert found.scores.tolist() == pytest.approx([0.9 * 0.25, 0.9 * 0.12])


def test_an_empty_mask_is_no_instance():
    masks = mask_logits_of("..", "#.")
    found = instances(class_logits_of([0.9, 0.1], [0.5, 0.5]), masks, sizes_of(masks), top_k=2)
    assert found.scores.tolist() == pytest.approx([0.45])


@pytest.mark.parametrize(("queries", "thing_ids", "top_k"), [(0, None, 3), (2, (), 3), (2, {0}, 0)])
def test_no_instances_are_empty_tensors_of_the_right_shape(queries, thing_ids, top_k):
    masks = torch.full((queries, 2, 3), 9.0)
    found = instances(
        torch.zeros(queries, 3), masks, Sizes((8, 12), (8, 12), (5, 7)), top_k=top_k, thing_ids=thing_ids
    )
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 5, 7)
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.dtype == torch.float32
    assert found.pred_classes.dtype == torch.int64


@pytest.mark.parametrize("sizes", SIZES)
def test_instance_masks_equal_the_published_resizing(sizes, monkeypatch):
    monkeypatch.setitem(strips._STRIP_NUMBERS, "cpu", 300)
    class_logits, mask_logits = random_logits(grid=(sizes.padded[0] // 4, sizes.padded[1] // 4))
    found = instances(class_logits, mask_logits, sizes, top_k=20)
    full = published_mask_logits(mask_logits, sizes, to_output=True)
    class_probs = class_logits.softmax(1)
    assert len(found) == 20
    for mask, box, score, label in zip(
        found.pred_masks, found.pred_boxes, found.scores, found.pred_classes, strict=True
    ):
        (query,) = [q for q in range(len(full)) if torch.equal(full[q] > 0, mask)]
        ys, xs = mask.nonzero(as_tuple=True)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        mean = full[query].sigmoid()[mask].mean()
        assert score.item() == pytest.approx((class_probs[query, label] * mean).item(), rel=1e-5)
