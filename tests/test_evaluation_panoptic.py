"""Panoptic quality against sets of pixels, by hand, and the evaluator on files."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from mask_former.engine import launch
from mask_former.evaluation import (
    PanopticCounts,
    PanopticEvaluator,
    PanopticSegments,
    count_picture,
    panoptic_scores,
    segments_from_info,
)
from mask_former.formats import id_to_rgb, rgb_to_id

NAMES = ["ball", "tree", "sky", "road"]
IS_THING = np.array([True, True, False, False])


def segments(ids, classes, crowd=None):
    crowd = [False] * len(ids) if crowd is None else crowd
    return PanopticSegments(np.array(ids, np.int64), np.array(classes, np.int64), np.array(crowd, bool))


def count_with_sets(target_map, target, predicted_map, predicted, num_classes):
    """The published definition, with a set of pixels for each segment; rows: IoU sum, TP, FP, FN."""
    rows = [[0.0, 0, 0, 0] for _ in range(num_classes)]

    def pixels(panoptic_map, segment_id):
        return {(y, x) for y, x in np.ndindex(panoptic_map.shape) if panoptic_map[y, x] == segment_id}

    void = pixels(target_map, 0)
    matched_predictions = set()
    for true_id, true_class, true_crowd in zip(*target, strict=True):
        if true_crowd:
            continue
        truth = pixels(target_map, true_id)
        found = False
        for predicted_id, predicted_class, _ in zip(*predicted, strict=True):
            guess = pixels(predicted_map, predicted_id)
            union = (truth | guess) - (void & guess)
            if true_class == predicted_class and union and len(truth & guess) / len(union) > 0.5:
                rows[true_class][0] += len(truth & guess) / len(union)
                rows[true_class][1] += 1
                matched_predictions.add(predicted_id)
                found = True
        rows[true_class][3] += not found
    for predicted_id, predicted_class, _ in zip(*predicted, strict=True):
        guess = pixels(predicted_map, predicted_id)
        excuse = set(void)
        for true_id, true_class, true_crowd in zip(*target, strict=True):
            if true_crowd and true_class == predicted_class:
                excuse |= pixels(target_map, true_id)
        if predicted_id not in matched_predictions and len(guess & excuse) / len(guess) <= 0.5:
            rows[predicted_class][2] += 1
    return np.array(rows).T


def random_map(rng, height, width, ids):
    """Rectangles of ids painted over void."""
    panoptic_map = np.zeros((height, width), np.int32)
    for segment_id in ids:
        top, left = rng.integers(0, height - 1), rng.integers(0, width - 1)
        panoptic_map[top : top + rng.integers(1, 7), left : left + rng.integers(1, 7)] = segment_id
    return panoptic_map


def random_case(rng):
    """Truth with crowds and far ids, and a prediction that resembles it in part."""
    height, width = 7, 9
    ids = rng.choice(np.arange(1, 256**3), 5, replace=False)
    target_map = random_map(rng, height, width, ids)
    target = segments(ids, rng.integers(0, 4, 5), rng.random(5) < 0.25)
    guess_map = np.zeros_like(target_map)
    for number, segment_id in enumerate(ids, 1):
        guess_map[target_map == segment_id] = number
    noise = random_map(rng, height, width, [6, 7, 8])
    guess_map = np.where((noise > 0) & (rng.random((height, width)) < 0.7), noise, guess_map)
    present = np.unique(guess_map[guess_map > 0])
    class_of = dict(enumerate(target.classes, 1)) | {number: rng.integers(0, 4) for number in (6, 7, 8)}
    classes = [class_of[i] if rng.random() < 0.8 else rng.integers(0, 4) for i in present]
    return target_map, target, guess_map, segments(present, classes)


def test_counts_equal_those_of_pixel_sets_on_random_maps():
    rng = np.random.default_rng(3)
    totals = np.zeros((4, 4))
    for _ in range(100):
        case = random_case(rng)
        expected = count_with_sets(*case, num_classes=4)
        np.testing.assert_allclose(np.stack(count_picture(*case, num_classes=4)), expected, atol=1e-12)
        totals += expected
    assert (totals > 10).all(), "the random maps must try every count of every class"


def test_segment_of_exactly_half_the_union_does_not_match():
    target_map, target = np.array([[5, 5, 8, 8]]), segments([5, 8], [0, 0])
    predicted_map, predicted = np.array([[6, 9, 9, 9]]), segments([6, 9], [0, 0])
    counts = count_picture(target_map, target, predicted_map, predicted, 1)
    assert counts.true_positives == 1  # 8 by 9: two pixels of three
    assert counts.iou_sum == pytest.approx(2 / 3)
    assert counts.false_negatives == 1  # 5: one pixel of two
    assert counts.false_positives == 1


def test_void_is_not_in_the_union():
    target_map, predicted_map = np.array([[5, 5, 5, 0]]), np.array([[1, 1, 1, 1]])
    counts = count_picture(target_map, segments([5], [0]), predicted_map, segments([1], [0]), 1)
    assert counts.iou_sum == 1


def test_crowd_is_neither_missed_nor_matched_and_excuses_its_own_class_only():
    target_map = np.full((2, 4), 3)
    crowd = segments([3], [1], [True])
    same = count_picture(target_map, crowd, np.ones((2, 4), int), segments([1], [1]), 2)
    other = count_picture(target_map, crowd, np.ones((2, 4), int), segments([1], [0]), 2)
    assert sum(sum(column) for column in same) == 0
    assert other.false_positives.tolist() == [1, 0]
    assert other.false_negatives.tolist() == [0, 0]


def test_true_segment_without_a_pixel_counts_as_missed():
    counts = count_picture(np.array([[4]]), segments([4, 6], [0, 1]), np.array([[1]]), segments([1], [0]), 2)
    assert counts.true_positives.tolist() == [1, 0]
    assert counts.false_negatives.tolist() == [0, 1]


def test_empty_truth_and_empty_prediction_count_nothing():
    nothing = np.zeros((3, 5), np.int32)
    counts = count_picture(nothing, segments([], []), nothing, segments([], []), 4)
    assert np.stack(counts).sum() == 0
    assert math.isnan(panoptic_scores(counts, NAMES, IS_THING)["PQ"])


def test_scores_are_means_over_classes_that_occur():
    # ball: one match at 0.8 and one spurious; sky: one match at 0.6, one missed; tree: spurious only.
    counts = PanopticCounts(
        np.array([0.8, 0, 0.6, 0]), np.array([1, 0, 1, 0]), np.array([1, 2, 0, 0]), np.array([0, 0, 1, 0])
    )
    scores = panoptic_scores(counts, NAMES, IS_THING)
    assert scores["PQ-ball"] == pytest.approx(100 * 0.8 / 1.5)
    assert scores["SQ-ball"] == pytest.approx(80)
    assert scores["RQ-ball"] == pytest.approx(100 / 1.5)
    assert scores["PQ-tree"] == scores["SQ-tree"] == scores["RQ-tree"] == 0
    assert math.isnan(scores["PQ-road"])
    assert math.isnan(scores["SQ-road"])
    assert scores["PQ_th"] == pytest.approx(100 * 0.8 / 1.5 / 2)
    assert scores["PQ_st"] == pytest.approx(100 * 0.6 / 1.5)
    assert scores["PQ"] == pytest.approx(100 * (0.8 / 1.5 + 0 + 0.6 / 1.5) / 3)
    assert scores["SQ"] == pytest.approx((80 + 0 + 60) / 3)


def test_ids_survive_the_way_through_colours():
    ids = np.array([[0, 1, 255], [256, 65535, 65536], [16777215, 7000, 300000]])
    colours = id_to_rgb(ids)
    assert colours[1, 2].tolist() == [0, 0, 1]
    assert colours[1, 0].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(rgb_to_id(colours), ids)
    with pytest.raises(ValueError, match="16777216"):
        id_to_rgb(np.array([[16777216]]))


@pytest.mark.parametrize(
    ("predicted_map", "ids", "message"),
    [
        ([[1, 2]], [1], r"x\.jpg: prediction: the map holds segment ids \[2\]"),
        ([[1, 1]], [1, 2], r"x\.jpg: prediction: segments \[2\] of segments_info have no pixel"),
        ([[1, -1]], [1], r"x\.jpg: prediction: segment ids must be in 0\.\."),
        ([[1, 1, 1]], [1], r"x\.jpg: the prediction has size \(1, 3\), the ground truth \(1, 2\)"),
    ],
)
def test_wrong_prediction_is_named(predicted_map, ids, message):
    predicted = segments(ids, [0] * len(ids))
    with pytest.raises(ValueError, match=message):
        count_picture(np.array([[7, 7]]), segments([7], [0]), np.array(predicted_map), predicted, 1, "x.jpg")


def test_truth_with_ids_missing_from_its_list_is_named():
    with pytest.raises(ValueError, match=r"a\.png: ground truth: .*\[9\] that segments_info does not list"):
        count_picture(
            np.array([[7, 9]]), segments([7], [0]), np.array([[0, 0]]), segments([], []), 1, "a.png"
        )


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([{"id": 1, "category_id": 4}], r"a\.png: category ids \[4\] are none"),
        ([{"id": 1, "category_id": 0}, {"id": 1, "category_id": 1}], "distinct"),
        ([{"id": 0, "category_id": 0}], r"in 1\.\."),
    ],
)
def test_wrong_segment_list_is_named(infos, message):
    with pytest.raises(ValueError, match=message):
        segments_from_info(infos, {0: 0, 1: 1}, "a.png")


def write_dataset(folder, cases):
    """Panoptic PNGs of `random_case`s, as a data set's list; its file category ids are 10 + class."""
    entries = []
    for number, (target_map, target, _, _) in enumerate(cases):
        path = folder / f"truth_{number}.png"
        Image.fromarray(id_to_rgb(target_map)).save(path)
        columns = zip(*(column.tolist() for column in target), strict=True)
        infos = [{"id": i, "category_id": c, "iscrowd": int(crowd)} for i, c, crowd in columns]
        picture = {"file_name": str(folder / f"{number}.jpg"), "image_id": 100 + number}
        entries.append(picture | {"pan_seg_file_name": str(path), "segments_info": infos})
    return entries


def result_of(case):
    _, _, predicted_map, predicted = case
    infos = [
        {"id": int(i), "category_id": int(c), "score": 0.5, "isthing": bool(IS_THING[c])}
        for i, c in zip(predicted.ids, predicted.classes, strict=True)
    ]
    return {"panoptic_seg": (torch.from_numpy(predicted_map), infos)}


def register(name, entries):
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).set(
        thing_classes=NAMES,
        stuff_classes=NAMES,
        thing_dataset_id_to_contiguous_id={10: 0, 11: 1},
        stuff_dataset_id_to_contiguous_id={10: 0, 11: 1, 12: 2, 13: 3},  # things too, as for ADE20K
    )


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(8)
    cases = [random_case(rng) for _ in range(5)]
    entries = write_dataset(tmp_path, cases)
    register("panoptic_evaluator_test", entries)
    yield "panoptic_evaluator_test", entries, cases
    DatasetCatalog.remove("panoptic_evaluator_test")
    MetadataCatalog.pop("panoptic_evaluator_test")


def expected_scores(cases):
    iou, true, spurious, missed = sum(count_with_sets(*case, num_classes=4) for case in cases)
    quality = 100 * iou / (true + spurious / 2 + missed / 2)
    return {"PQ": quality.mean(), "PQ_th": quality[:2].mean(), "PQ_st": quality[2:].mean()}


def test_evaluator_gives_the_scores_of_its_files(dataset):
    name, entries, cases = dataset
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    for entry, case in zip(entries, cases, strict=True):
        evaluator.process([entry], [result_of(case)])
    scores = evaluator.evaluate()["panoptic_seg"]
    for key, value in expected_scores(cases).items():
        assert scores[key] == pytest.approx(value), key
    assert {f"{score}-{name}" for score in ("PQ", "SQ", "RQ") for name in NAMES} < scores.keys()


def test_reset_forgets_the_pictures_before(dataset):
    name, entries, cases = dataset
    evaluator = PanopticEvaluator(name)
    evaluator.process(entries[:1], [result_of(cases[0])])
    evaluator.reset()
    evaluator.process(entries, [result_of(case) for case in cases])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(expected_scores(cases)["PQ"])


def test_result_without_panoptic_map_names_the_switch(dataset):
    name, entries, _ = dataset
    with pytest.raises(KeyError, match=r"TEST\.PANOPTIC_ON"):
        PanopticEvaluator(name).process(entries[:1], [{"sem_seg": torch.zeros(4, 7, 9)}])


def test_picture_listed_twice_is_refused(dataset):
    name, entries, _ = dataset
    entries.append(dict(entries[0], file_name="other.jpg"))
    with pytest.raises(ValueError, match=r"other\.jpg \(image id 100\) twice"):
        PanopticEvaluator(name)


def test_classes_without_a_thing_map_are_reported_by_key(dataset):
    name, _, _ = dataset
    del MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    with pytest.raises(KeyError, match="thing_dataset_id_to_contiguous_id"):
        PanopticEvaluator(name)


def evaluate_shards(entries, cases, path):
    """What one of two processes does: first both have pictures, then the first process alone."""
    torch.set_num_threads(1)
    register("panoptic_shards", entries)
    evaluator = PanopticEvaluator("panoptic_shards")
    scores = []
    for shards in ([[0, 1, 2], [3, 4]], [[0, 1, 2, 3, 4], []]):
        evaluator.reset()
        shard = shards[comm.get_rank()]
        evaluator.process([entries[i] for i in shard], [result_of(cases[i]) for i in shard])
        scores.append(evaluator.evaluate())
        assert (scores[-1] is None) == (comm.get_rank() > 0)
    if comm.is_main_process():
        path.write_text(json.dumps([score["panoptic_seg"]["PQ"] for score in scores]))


def test_two_processes_one_perhaps_without_pictures_give_the_scores_of_one(dataset, tmp_path):
    _, entries, cases = dataset
    path = tmp_path / "scores.json"
    launch(evaluate_shards, num_gpus=2, dist_url="auto", args=(entries, cases, path))
    assert json.loads(path.read_text()) == pytest.approx([expected_scores(cases)["PQ"]] * 2)
