"""The same model and images give the same scores on every way through the package, or one clear line."""

import json
import math
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, SemSegEvaluator
from seam_scenes import (
    CLASSES,
    ColorHead,
    PixelColorHead,
    color_model,
    plain_per_pixel_model,
    register_scene,
    seam_config,
    write_scene,
)

from mask_former.config import load_config
from mask_former.engine.trainer import Trainer
from mask_former.evaluation import EVALUATORS
from mask_former.evaluation.__main__ import main as score_files
from mask_former.modeling.build import build_model
from mask_former.prediction.classes import classes_of_dataset
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.writing import ResultWriter

OWN_KINDS = [kind for kind in EVALUATORS if not kind.startswith("cityscapes")]
FILES = {
    "sem_seg": "labels",
    "panoptic_seg": "panoptic.json",
    "segm": "coco_instances_results.json",
    "bbox": "coco_instances_results.json",
}
TASK_OF = {"sem_seg": "semantic", "panoptic_seg": "panoptic", "segm": "instance", "bbox": "instance"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seams")
    return {k: (folder / str(k), write_scene(folder / str(k), k)) for k in CLASSES}


@pytest.fixture
def case(scenes, tmp_path):
    """A data set of some kind and class count, its configuration and its model."""

    def make(kind, num_classes, head=ColorHead, tasks=None):
        folder, entries = scenes[num_classes]
        name = register_scene(folder, entries, kind, num_classes)
        cfg = seam_config(name, kind, num_classes, tmp_path / "output", tasks)
        return cfg, color_model(cfg, CLASSES[num_classes], None, head)

    return make


def scores_of_files(cfg, model, tasks, folder, **options):
    """Predict with a Predictor, write files, and score them with the command line."""
    (name,) = cfg.DATASETS.TEST
    predictor = Predictor(model, cfg, classes_of_dataset(cfg, name), **options)
    entries = DatasetCatalog.get(name)
    kinds = {FILES[task].split("_")[0].removesuffix(".json") for task in tasks}
    ids = {Path(entry["file_name"]).name: entry.get("image_id") for entry in entries}
    with ResultWriter(folder, kinds, predictor.classes, image_ids=ids) as writer:
        for result in predictor([entry["file_name"] for entry in entries], batch_size=2):
            writer.write(result)
    scores = {}
    for task in tasks:
        out = folder / "scores.json"
        command = ["--pred", folder / FILES[task], "--dataset", name, "--json", out, "--task", TASK_OF[task]]
        assert score_files([str(word) for word in command]) == 0
        scores |= {key: values for key, values in json.loads(out.read_text()).items() if key in tasks}
    return scores


def assert_same_scores(scores, expected):
    """Compare the tasks and metrics that both have."""
    tasks = scores.keys() & expected.keys()
    assert tasks
    for task in tasks:
        keys = scores[task].keys() & expected[task].keys()
        assert keys
        for key in keys:
            first, second = (math.nan if s[task][key] is None else s[task][key] for s in (scores, expected))
            assert first == pytest.approx(second, abs=1e-9, nan_ok=True), (task, key)


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("kind", OWN_KINDS)
def test_every_way_gives_the_same_scores(case, kind, num_classes, tmp_path):
    cfg, model = case(kind, num_classes)
    rules = model.rules
    scores = Trainer.test(cfg, model)
    expected = {"SEMANTIC_ON": {"sem_seg"}, "PANOPTIC_ON": {"panoptic_seg"}, "INSTANCE_ON": {"segm", "bbox"}}
    assert set(scores) == set().union(*(expected[switch] for switch in EVALUATORS[kind]))
    # Neither all right nor all wrong.
    assert all(0 < scores[task][key] < 100 for task, key in MAIN_METRICS.items() if task in scores)
    if "sem_seg" in scores:
        augmented = Trainer.test_with_tta(cfg, model)
        assert_same_scores({"sem_seg": augmented["sem_seg_TTA"]}, scores)
    else:
        with pytest.raises(ValueError, match=r"Test-time augmentation averages semantic results.*ENABLED"):
            Trainer.test_with_tta(cfg, model)
    assert_same_scores(scores_of_files(cfg, model, list(scores), tmp_path), scores)
    assert model.rules is rules


MAIN_METRICS = {"sem_seg": "mIoU", "panoptic_seg": "PQ", "segm": "AP"}


@pytest.mark.parametrize("num_classes", [2, 300])
@pytest.mark.parametrize("plain", [False, True])
def test_per_pixel_models_give_the_same_scores_on_every_way(case, num_classes, plain, tmp_path):
    cfg, model = case("sem_seg", num_classes, PixelColorHead)
    model = plain_per_pixel_model(model) if plain else model
    scores = Trainer.test(cfg, model)
    assert 0 < scores["sem_seg"]["mIoU"] < 100
    assert_same_scores({"sem_seg": Trainer.test_with_tta(cfg, model)["sem_seg_TTA"]}, scores)
    assert_same_scores(scores_of_files(cfg, model, ["sem_seg"], tmp_path), scores)
    theirs = Trainer.test(cfg, model, SemSegEvaluator(cfg.DATASETS.TEST[0], output_dir=None))
    assert_same_scores(theirs, scores)


@pytest.mark.parametrize("num_classes", [2, 300])
def test_detectron2s_semantic_evaluator_gives_the_same_scores(case, num_classes):
    cfg, model = case("sem_seg", num_classes)
    evaluator = SemSegEvaluator(cfg.DATASETS.TEST[0], output_dir=None)
    assert_same_scores(Trainer.test(cfg, model, [evaluator]), Trainer.test(cfg, model))


def test_detectron2s_semantic_evaluator_of_one_class_is_refused(case):
    cfg, model = case("sem_seg", 1)
    evaluator = SemSegEvaluator(cfg.DATASETS.TEST[0], output_dir=None)
    with pytest.raises(
        ValueError, match=r"SemSegEvaluator takes the class with the highest score.*'sem_seg'"
    ):
        Trainer.test(cfg, model, [evaluator])


@pytest.mark.parametrize("num_classes", CLASSES)
def test_detectron2s_instance_evaluator_gives_the_same_scores(case, num_classes):
    cfg, model = case("coco", num_classes)
    evaluator = COCOEvaluator(cfg.DATASETS.TEST[0], ("bbox", "segm"), output_dir=None, use_fast_impl=False)
    assert_same_scores(Trainer.test(cfg, model, [evaluator]), Trainer.test(cfg, model))


def test_one_evaluator_that_wants_scores_gives_scores_to_all(case):
    cfg, model = case("ade20k_panoptic_seg", 300, tasks=["semantic"])
    seen = []

    class Watching(SemSegEvaluator):
        def process(self, inputs, outputs):
            seen.extend(tuple(output["sem_seg"].shape) for output in outputs)
            super().process(inputs, outputs)

    evaluators = DatasetEvaluators(
        [Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0]), Watching(cfg.DATASETS.TEST[0], output_dir=None)]
    )
    # Both call their scores "sem_seg".
    with pytest.raises(AssertionError, match="same key sem_seg"):
        Trainer.test(cfg, model, [evaluators])
    assert seen == [(300, 48, 64)] * 3


def test_a_per_pixel_model_of_one_class_is_refused():
    opts = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1]
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 1, but a per-pixel model needs a second class"):
        build_model(load_config(opts=opts), "cpu")
