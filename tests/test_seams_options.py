"""Each option of a predictor, crossed with a number of its results that is computed another way."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from published_order import published_mask_logits, published_scores
from seam_scenes import CLASSES, HEIGHT, WIDTH, color_model, register_scene, seam_config, write_scene
from small_predictors import decided_model, picture, small_config, write_checkpoint
from torch.nn import functional as F

import demo
from mask_former.engine.sample_pictures import draw_samples
from mask_former.inference import ResultRules, form_results, semantic_labels, semantic_scores
from mask_former.inference.resizing import Sizes
from mask_former.inference.tta import SemanticSegmentorWithTTA
from mask_former.prediction.classes import classes_of_dataset
from mask_former.prediction.predictor import Predictor

IMAGE = picture(70, 90)


@pytest.fixture(scope="module")
def parts():
    cfg = small_config()
    return decided_model(cfg), cfg, classes_of_dataset(cfg)


def predict(parts, call=None, **options):
    model, cfg, classes = parts
    model.rules = replace(
        model.rules, tasks=("semantic", "panoptic", "instance"), thing_ids=frozenset({0, 1})
    )
    (result,) = Predictor(model, cfg, classes, **options)(IMAGE, return_logits=True, **(call or {}))
    return result


def full_size_probs(result):
    """Class and mask probabilities of all queries, on whole maps in the published order."""
    class_logits, mask_logits, sizes = result.logits
    return class_logits.softmax(1), published_mask_logits(mask_logits, sizes, to_output=True).sigmoid()


def winners(result):
    """The panoptic winner of each pixel, and each query's class, score and areas, by plain loops."""
    class_probs, mask_probs = full_size_probs(result)
    scores, labels = class_probs.max(1)
    return scores, labels, mask_probs


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_a_mask_threshold_decides_pixels_and_not_scores_or_winners(parts, threshold):
    plain, result = predict(parts), predict(parts, mask_threshold=threshold)
    class_probs, mask_probs = full_size_probs(plain)
    things = class_probs[:, :2]
    expected = []
    for query, mask in enumerate(mask_probs):
        inside = mask > 0.5
        for label in range(2):
            if inside.any() and (mask > threshold).any():
                score = things[query, label] * mask[inside].mean()
                expected.append((score.item(), label, int((mask > threshold).sum())))
    expected.sort(reverse=True)
    found = result.instances
    assert len(found) == len(expected) > 2
    assert np.allclose(found.scores, [score for score, _, _ in expected], atol=1e-5)
    assert found.areas.tolist() == [area for _, _, area in expected]
    assert np.array_equal(result.semantic, plain.semantic)


@pytest.mark.parametrize(("mask_threshold", "overlap_threshold"), [(0.5, 0.6), (0.3, 0.6), (0.9, 0.9)])
def test_an_overlap_threshold_compares_areas_won_with_masks(parts, mask_threshold, overlap_threshold):
    result = predict(parts, mask_threshold=mask_threshold, overlap_threshold=overlap_threshold)
    scores, labels, mask_probs = winners(result)
    takes_part = (labels != 5) & (scores > 0.3)
    winner = (scores[:, None, None] * mask_probs)[takes_part].argmax(0)
    areas, stuff = [], {}
    for number, query in enumerate(takes_part.nonzero().flatten().tolist()):
        won, area = int((winner == number).sum()), int((mask_probs[query] >= mask_threshold).sum())
        if won and area and won / area >= overlap_threshold:
            label = int(labels[query])
            if label < 2:
                areas.append((label, won))
            else:
                stuff[label] = stuff.get(label, 0) + won
    assert sorted((s.category_id, s.area) for s in result.segments) == sorted([*areas, *stuff.items()])


def test_a_score_threshold_drops_segments_and_instances(parts):
    everything = predict(parts)
    threshold = float(np.median(everything.instances.scores))
    result = predict(parts, score_threshold=threshold)
    kept = everything.instances.scores > threshold
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(result.instances.scores, everything.instances.scores[kept])
    assert np.array_equal(result.instances.areas, everything.instances.areas[kept])
    class_probs, _ = full_size_probs(result)
    assert all(segment.score > threshold for segment in result.segments)
    allowed = {round(p, 5) for p in class_probs.max(1).values.tolist()}
    assert {round(segment.score, 5) for segment in result.segments} <= allowed


def test_top_k_keeps_the_most_probable_pairs(parts):
    result = predict(parts, top_k=3)
    class_probs, mask_probs = full_size_probs(result)
    pairs = class_probs[:, :2].flatten().topk(3).indices.tolist()
    masks = mask_probs > 0.5
    expected = sorted(int(masks[pair // 2].sum()) for pair in pairs if masks[pair // 2].any())
    assert sorted(result.instances.areas.tolist()) == expected


def test_kept_classes_take_pixels_segments_and_instances_away(parts):
    everything, result = predict(parts), predict(parts, classes_to_keep=[1, 2])
    void = result.classes.void_label
    assert np.array_equal(
        result.semantic, np.where(np.isin(everything.semantic, [1, 2]), everything.semantic, void)
    )
    kept = [segment for segment in everything.segments if segment.category_id in (1, 2)]
    assert result.segments == kept
    assert np.array_equal(
        result.panoptic, np.where(np.isin(everything.panoptic, [s.id for s in kept]), everything.panoptic, 0)
    )
    assert set(result.instances.classes.tolist()) == {1}


def test_output_size_top_queries_and_scores(parts):
    call = {"output_size": (41, 33), "top_k_queries": 3, "return_scores": True}
    result = predict(parts, call)
    class_logits, mask_logits, sizes = result.logits
    assert (sizes.output, len(class_logits)) == ((41, 33), 3)
    expected = published_scores(class_logits, mask_logits, sizes, False)
    assert torch.allclose(result.scores, expected, atol=1e-5)
    assert (result.semantic == expected.argmax(0).numpy()).mean() > 0.999
    everything = predict(parts).logits.class_logits.softmax(1)[:, :-1].amax(1)
    highest = class_logits.softmax(1)[:, :-1].amax(1)
    assert torch.allclose(highest.sort().values, everything.sort().values[-3:])


def test_precision_float32_gives_the_same_areas(parts):
    plain, fast = predict(parts), predict(parts, precision="float32")
    assert np.allclose(fast.instances.scores, plain.instances.scores, atol=1e-3)
    assert [s.category_id for s in fast.segments] == [s.category_id for s in plain.segments]
    assert np.allclose([s.area for s in fast.segments], [s.area for s in plain.segments], rtol=0.02)


def test_other_rules_are_another_predictor(parts):
    model, cfg, classes = parts
    predictor = Predictor(model, cfg, classes)
    before = predictor.rules
    other = predictor.with_rules(tasks=("semantic",))
    assert predictor.rules is before
    assert other.model is predictor.model
    assert other(IMAGE)[0].instances is None


# Grey images ------------------------------------------------------------------------------------------


def grey_case(tmp_path, num_classes=2):
    """A data set of grey images, and a model of one channel that tells their levels apart."""
    folder = tmp_path / "scene"
    entries = write_scene(folder, num_classes)
    levels = [[0.0], [51.0], [102.0], [153.0], [204.0], [255.0]]
    colors = {color: level[0] for color, level in zip(COLOR_KEYS, levels, strict=True)}
    for entry in entries:
        pixels = np.asarray(Image.open(entry["file_name"]))
        grey = np.array([[colors[tuple(p)] for p in row] for row in pixels.tolist()], np.uint8)
        Image.fromarray(grey).save(entry["file_name"])
    name = register_scene(folder, entries, "sem_seg", num_classes)
    cfg = seam_config(name, "sem_seg", num_classes, tmp_path / "output")
    cfg.INPUT.FORMAT = "L"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0], [255.0]
    model = color_model(cfg, CLASSES[num_classes], colors=levels, mean_and_std=([0.0], [255.0]))
    model.sem_seg_head.sharpness, model.sem_seg_head.radius = 60.0, 0.1
    return cfg, model, entries


COLOR_KEYS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]


def test_a_model_of_grey_images_predicts_and_is_drawn(tmp_path, caplog):
    from mask_former.engine.trainer import Trainer

    cfg, model, entries = grey_case(tmp_path)
    results = Predictor(model, cfg, classes_of_dataset(cfg))([entry["file_name"] for entry in entries])
    assert results[0].semantic.shape == (HEIGHT, WIDTH)
    for entry, result in zip(entries, results, strict=True):
        grey = np.asarray(Image.open(entry["file_name"]))
        middle = np.ix_([12, 36], [10, 32, 54])  # of each segment
        assert np.array_equal(result.semantic[middle], np.where(grey <= 51, 0, 1)[middle])
    scores = Trainer.test(cfg, model)["sem_seg"]
    augmented = Trainer.test_with_tta(cfg, model)["sem_seg_TTA"]
    assert augmented["mIoU"] == pytest.approx(scores["mIoU"], abs=1e-9)
    caplog.clear()  # scores, if a test before this one has set the level of the logger
    with caplog.at_level(logging.WARNING):
        draw_samples(model, cfg, cfg.DATASETS.TEST[0], 2, tmp_path / "samples.png")
    assert caplog.text == ""
    assert (tmp_path / "samples.png").exists()


def test_test_time_augmentation_reads_16_bit_grey_images(tmp_path):
    cfg, model, entries = grey_case(tmp_path)
    tta = SemanticSegmentorWithTTA(cfg, model)
    file_name = entries[0]["file_name"]
    (expected,) = tta([{"file_name": file_name}])
    grey = np.asarray(Image.open(file_name)).astype(np.uint16)
    Image.fromarray(grey * 256).save(tmp_path / "deep.png")
    (result,) = tta([{"file_name": str(tmp_path / "deep.png")}])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])


# Drawing ----------------------------------------------------------------------------------------------


def test_16_bit_labels_are_drawn(tmp_path, caplog):
    """Their ignore label, 65535, is that of the data set, not of the classes."""
    entries = write_scene(tmp_path / "scene", 1)
    name = register_scene(tmp_path / "scene", entries, "sem_seg", 1)
    cfg = seam_config(name, "sem_seg", 1, tmp_path / "output")
    model = color_model(cfg, CLASSES[1])
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    with caplog.at_level(logging.WARNING):
        draw_samples(model, cfg, name, 2, tmp_path / "samples.png")
    assert caplog.text == ""
    assert (tmp_path / "samples.png").exists()
    assert [module.training for module in model.modules()] == modes


def test_an_error_while_drawing_is_one_warning(tmp_path, caplog):
    entries = write_scene(tmp_path / "scene", 2)
    (tmp_path / "scene" / "0.png").write_bytes(b"no image")
    name = register_scene(tmp_path / "scene", entries, "sem_seg", 2)
    cfg = seam_config(name, "sem_seg", 2, tmp_path / "output")
    with caplog.at_level(logging.WARNING):
        draw_samples(color_model(cfg, CLASSES[2]), cfg, name, 2, tmp_path / "samples.png")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "were not drawn" in record.getMessage()
    assert "0.png" in record.getMessage()


# Logits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3e38, 1e38, torch.inf])
@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("num_classes", [1, 3, 300])
def test_infinite_mask_logits_give_finite_results(value, resize_logits, num_classes):
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (9, 8, 12), generator=generator) * 2.0 - 1
    class_logits = torch.randn(9, num_classes + 1, generator=generator)
    sizes = Sizes((32, 48), (30, 47), (41, 63))
    scores = semantic_scores(class_logits, signs * value, sizes, resize_logits=resize_logits)
    assert torch.isfinite(scores).all()
    # What is huge for a sigmoid already.
    expected = semantic_scores(class_logits, signs * 1e30, sizes, resize_logits=resize_logits)
    assert torch.allclose(scores, expected, atol=1e-6)
    labels = semantic_labels(class_logits, signs * value, sizes, resize_logits=resize_logits)
    assert torch.equal(
        labels, semantic_labels(class_logits, signs * 1e30, sizes, resize_logits=resize_logits)
    )
    resized = F.interpolate(signs[None] * 1e30, size=(32, 48), mode="bilinear")
    assert torch.isfinite(resized).all()
    rules = ResultRules(tasks=("panoptic", "instance"), thing_ids=frozenset({0}))
    found = form_results(class_logits, signs * value, sizes, rules)
    assert torch.isfinite(found["instances"].scores).all()


@pytest.mark.parametrize("resize_logits", [False, True])
def test_one_class_is_where_its_score_is_at_least_one_half(resize_logits):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(5, 2, generator=generator)
    masks = 3 * torch.randn(5, 8, 12, generator=generator)
    sizes = Sizes((32, 48), (30, 47), (41, 63))
    labels = semantic_labels(class_logits, masks, sizes, resize_logits=resize_logits)
    expected = published_scores(class_logits, masks, sizes, resize_logits)[0]
    clear = (expected - 0.5).abs() > 1e-5
    assert torch.equal(labels[clear], torch.where(expected >= 0.5, 0, -1)[clear])
    assert {0, -1} == set(labels.unique().tolist())


# The program ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    Image.fromarray(IMAGE).save(folder / "image.png")
    Image.fromarray(picture(80, 64, seed=3)).save(folder / "other.png")
    return write_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "options", "call"),
    [
        (["--confidence-threshold", "0.5"], {"score_threshold": 0.5}, {}),
        (["--classes", "car, sky,3"], {"classes": ["car", "sky", 3]}, {}),
        (["--batch", "2"], {}, {"batch_size": 2}),
        (["--opts", "INPUT.MIN_SIZE_TEST", "96"], {"opts": ["INPUT.MIN_SIZE_TEST", 96]}, {}),
    ],
)
def test_the_programs_table_holds_the_numbers_of_a_predictor(checkpoint, tmp_path, arguments, options, call):
    """Scores and areas of segments.csv, for each option that can change them."""
    images = sorted(checkpoint.parent.glob("*.png"))
    command = ["--weights", checkpoint, "--input", *images, "--output", tmp_path, "--save", "csv", *arguments]
    assert demo.main([str(word) for word in command]) == 0
    with (tmp_path / "segments.csv").open() as file:
        rows = [
            (row["image"], row["name"], float(row["score"]), int(row["area"])) for row in csv.DictReader(file)
        ]
    results = Predictor.from_checkpoint(checkpoint, device="cpu", **options)([str(i) for i in images], **call)
    expected = [(r.image_name, s.name, s.score, s.area) for r in results for s in r.segments]
    assert len(rows) == len(expected) > 0
    for row, (*names, score, area) in zip(sorted(rows), sorted(expected), strict=True):
        assert list(row[:2]) == names
        assert row[2:] == (pytest.approx(score, abs=1e-5), area)
    for result in results:
        ids, areas = np.unique(result.panoptic[result.panoptic > 0], return_counts=True)
        assert dict(zip(ids.tolist(), areas.tolist(), strict=True)) == {s.id: s.area for s in result.segments}
