"""Semantic scores against Detectron2's own and by hand; label files of every kind; the evaluator."""

import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from mask_former.evaluation import SemanticEvaluator, semantic_quality
from mask_former.evaluation.ground_truth import Classes
from mask_former.evaluation.saved import label_files, score_semantic
from mask_former.formats import id_to_rgb

NAME = "semantic_evaluator_test"


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that registers label maps as a data set and gives its list."""

    def register(label_maps, num_classes, suffix=".png", **metadata):
        entries = []
        for number, labels in enumerate(label_maps):
            path = tmp_path / f"truth_{number}{suffix}"
            Image.fromarray(labels).save(path)
            entries.append({"file_name": str(tmp_path / f"{number}.jpg"), "sem_seg_file_name": str(path)})
        DatasetCatalog.register(NAME, lambda: entries)
        names = [f"c{index}" for index in range(num_classes)]
        MetadataCatalog.get(NAME).set(**{"stuff_classes": names, "ignore_label": 255} | metadata)
        return entries

    yield register
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME)


def evaluate(evaluator, entries, results):
    evaluator.reset()
    for entry, result in zip(entries, results, strict=True):
        evaluator.process([entry], [{"sem_seg": result}])
    return evaluator.evaluate()["sem_seg"]


def random_labels(seed, num_classes=5, count=3):
    """Label maps with every class and some void."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, num_classes + 1, (count, 9, 13)).astype(np.uint8)
    maps[maps == num_classes] = 255
    return list(maps)


def test_scores_equal_those_of_detectron2_where_every_class_is_true(make_dataset):
    entries = make_dataset(random_labels(0), 5)
    scores = [torch.rand(5, 9, 13, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    ours = evaluate(SemanticEvaluator(NAME), entries, scores)
    theirs = evaluate(SemSegEvaluator(NAME), entries, scores)
    assert 5 < ours["mIoU"] < 50
    for key in (
        "mIoU",
        "fwIoU",
        "mACC",
        "pACC",
        *(f"{kind}-c{i}" for kind in ("IoU", "ACC") for i in range(5)),
    ):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-9), key


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_label_maps_score_as_the_score_maps_they_come_from(make_dataset, dtype):
    entries = make_dataset(random_labels(1), 5)
    scores = [torch.rand(5, 9, 13, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    labels = [score.argmax(dim=0).to(dtype) for score in scores]
    evaluator = SemanticEvaluator(NAME)
    assert evaluate(evaluator, entries, labels) == evaluate(evaluator, entries, scores)


def test_class_that_is_predicted_but_never_true_is_not_in_the_mean():
    confusion = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    scores = semantic_quality(confusion, ["a", "b"])
    assert scores["mIoU"] == scores["IoU-a"] == 75
    assert math.isnan(scores["IoU-b"])


def test_pixels_given_no_class_count_as_missed_but_as_no_mistake_of_another_class():
    confusion = np.array([[3, 0, 1], [0, 4, 4], [0, 0, 9]])  # the last column is no class
    scores = semantic_quality(confusion, ["a", "b"])
    assert scores["IoU-a"] == 75
    assert scores["IoU-b"] == 50
    assert scores["pACC"] == pytest.approx(100 * 7 / 12)


def test_no_labelled_pixel_gives_undefined_scores_without_a_warning(recwarn):
    scores = semantic_quality(np.zeros((3, 3), np.int64), ["a", "b"])
    assert all(math.isnan(value) for value in scores.values())
    assert not recwarn.list


ONE_CLASS = np.array([[0, 0, 0, 255, 255, 255]], np.uint8)


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ([0.9, 0.8, 0.7, 0.1, 0.2, 0.4], 100),  # as it should be
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 50),  # everywhere
        ([0.1, 0.9, 0.1, 0.1, 0.1, 0.1], 100 / 3),  # a part
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0),  # nowhere
    ],
)
def test_one_class_is_scored_against_its_background(make_dataset, predicted, iou):
    entries = make_dataset([ONE_CLASS], 1)
    scores = evaluate(SemanticEvaluator(NAME), entries, [torch.tensor(predicted)[None, None]])
    assert scores["mIoU"] == scores["IoU-c0"] == pytest.approx(iou)


def test_void_of_one_class_is_ignored_on_request():
    everywhere = np.array([[3, 0], [3, 0]])
    assert semantic_quality(everywhere, ["a"])["mIoU"] == 50
    assert semantic_quality(everywhere, ["a"], void_is_background=False)["mIoU"] == 100


def test_void_counts_for_nothing_with_several_classes(make_dataset):
    truth = np.array([[0, 1, 255, 255]], np.uint8)
    entries = make_dataset([truth], 2)
    assert evaluate(SemanticEvaluator(NAME), entries, [torch.tensor([[0, 1, 0, 1]])])["mIoU"] == 100


def test_label_equal_to_the_number_of_classes_is_an_error_not_void(make_dataset):
    truth = np.array([[0, 1, 2, 3]], np.uint8)
    entries = make_dataset([truth], 2)
    message = r"truth_0\.png: found labels 2, 3; allowed are 0\.\.1, and 255 is ignored"
    with pytest.raises(ValueError, match=message):
        evaluate(SemanticEvaluator(NAME), entries, [torch.zeros(1, 4, dtype=torch.int64)])


def test_predicted_label_out_of_range_is_named_as_the_prediction(make_dataset):
    entries = make_dataset([np.array([[0, 1]], np.uint8)], 2)
    with pytest.raises(ValueError, match=r"0\.jpg: prediction: found labels 2"):
        evaluate(SemanticEvaluator(NAME), entries, [torch.tensor([[0, 2]])])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(5, 9, 12), r"0\.jpg: the prediction has size \(9, 12\), the ground truth \(9, 13\)"),
        (torch.zeros(4, 9, 13), r"\(4, 9, 13\) of torch\.float32; the data set has 5 classes"),
        (torch.zeros(9, 13), r"found \(9, 13\) of torch\.float32"),
    ],
)
def test_prediction_of_another_shape_is_named(make_dataset, result, message):
    entries = make_dataset(random_labels(2), 5)
    with pytest.raises(ValueError, match=message):
        evaluate(SemanticEvaluator(NAME), entries[:1], [result])


def test_result_without_semantic_map_names_the_switch(make_dataset):
    entries = make_dataset(random_labels(2), 5)
    with pytest.raises(KeyError, match=r"TEST\.SEMANTIC_ON"):
        SemanticEvaluator(NAME).process(entries[:1], [{"panoptic_seg": None}])


def test_sixteen_bit_labels_and_their_ignore_label_are_read_whole(make_dataset):
    truth = np.array([[0, 700, 846, 65535]], np.uint16)
    entries = make_dataset([truth], 847, suffix=".tif", ignore_label=65535)
    scores = evaluate(SemanticEvaluator(NAME), entries, [torch.tensor([[0, 700, 845, 3]])])
    assert scores["pACC"] == pytest.approx(200 / 3)
    assert scores["IoU-c700"] == 100


def test_semantic_truth_is_taken_from_panoptic_files_where_there_is_no_other(tmp_path, make_dataset):
    entries = make_dataset([], 3)
    panoptic_map = np.array([[0, 900, 900, 40000], [7, 7, 7, 40000]])
    Image.fromarray(id_to_rgb(panoptic_map)).save(tmp_path / "p.png")
    classes = {900: 2, 40000: 0, 7: 0}
    infos = [{"id": i, "category_id": c, "iscrowd": int(i == 7)} for i, c in classes.items()]
    entries.append(
        {"file_name": "a.jpg", "pan_seg_file_name": str(tmp_path / "p.png"), "segments_info": infos}
    )
    MetadataCatalog.get(NAME).set(
        thing_classes=["c0", "c1", "c2"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
        stuff_dataset_id_to_contiguous_id={5: 2},
    )
    predicted = torch.tensor([[1, 2, 2, 0], [0, 0, 1, 0]])
    scores = evaluate(SemanticEvaluator(NAME), entries, [predicted])
    assert scores["IoU-c2"] == 100
    assert scores["IoU-c0"] == 80
    assert scores["mIoU"] == 90


def segment_quality_by_sets(pairs, num_classes):
    """PQ of classes as segments: mean over classes, from sets of pixels and the published definition."""
    qualities = []
    for index in range(num_classes):
        iou = 0.0
        true = spurious = missed = 0
        for target, predicted in pairs:
            truth = {tuple(p) for p in np.argwhere(target == index)}
            guess = {tuple(p) for p in np.argwhere(predicted == index)}
            void = {tuple(p) for p in np.argwhere(target == 255)}
            union = (truth | guess) - (guess & void)
            if union and len(truth & guess) / len(union) > 0.5:
                iou += len(truth & guess) / len(union)
                true += 1
                continue
            missed += bool(truth)
            spurious += bool(guess) and len(guess & void) / len(guess) <= 0.5
        qualities.append(iou / (true + spurious / 2 + missed / 2))
    return 100 * sum(qualities) / num_classes


def test_segment_quality_is_that_of_pixel_sets(tmp_path):
    rng = np.random.default_rng(6)
    truths = [np.repeat(np.repeat(labels[:3, :4], 3, 0), 3, 1) for labels in random_labels(4, count=12)]
    guesses = []
    for truth in truths:
        known = np.where(truth == 255, rng.integers(0, 5), truth)
        wrong = rng.random(truth.shape) < 0.3
        guesses.append(np.where(wrong, rng.integers(0, 5, truth.shape), known))
    for folder, maps in ((tmp_path / "truth", truths), (tmp_path / "guess", guesses)):
        folder.mkdir()
        for number, labels in enumerate(maps):
            Image.fromarray(labels.astype(np.uint8)).save(folder / f"{number}.png")
    classes = Classes(list("abcde"), list(range(5)), ignore_label=255)
    scores = score_semantic(tmp_path / "guess", label_files(tmp_path / "truth"), classes, False)["sem_seg"]
    expected = segment_quality_by_sets(list(zip(truths, guesses, strict=True)), 5)
    assert 5 < expected < 95
    assert scores["PQ"] == pytest.approx(expected)


def test_pictures_that_were_not_scored_are_reported(make_dataset, caplog):
    entries = make_dataset(random_labels(7), 5)
    with caplog.at_level(logging.WARNING, "mask_former.evaluation"):
        evaluate(SemanticEvaluator(NAME), entries[:2], [torch.zeros(5, 9, 13)] * 2)
    assert "scored 2 pictures of 3" in caplog.text
