"""Cityscapes in its real layout, its labels made and its scores computed by the real cityscapesscripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from seam_scenes import (
    COLORS,
    HEIGHT,
    WIDTH,
    ColorHead,
    PixelColorHead,
    color_model,
    seam_config,
    segment_map,
)
from test_seams import assert_same_scores, scores_of_files
from tiny_runs import CONFIG, OPTS, ROOT

from mask_former.config import load_config
from mask_former.data.datasets import register_all
from mask_former.engine.trainer import Trainer
from mask_former.evaluation import check_ground_truth

NAMES = ["road", "building", "sky", "vegetation", "person", "car"]
CLASSES = [name2label[name].trainId for name in NAMES]
SEMANTIC, PANOPTIC = "cityscapes_fine_sem_seg_val", "cityscapes_fine_panoptic_val"
INSTANCE = "seams_cityscapes_instance"


def write_city(root: Path, city: str, number: int) -> Path:
    """Write an image and, by cityscapesscripts from polygons, its labels; return the image."""
    images, labels = root / "leftImg8bit/val" / city, root / "gtFine/val" / city
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    stem = f"{city}_{number:06d}_000019"
    shown = segment_map(number)
    image = images / f"{stem}_leftImg8bit.png"
    Image.fromarray(np.array(COLORS, np.uint8)[shown]).save(image)
    objects = []
    # The truth is four pixels to the right of what the image shows; what is left over is void.
    for row, bottom in ((0, 23), (24, 47)):
        for left, right in ((4, 23), (24, 47), (48, 63)):
            box = [[left, row], [right, row], [right, bottom], [left, bottom]]
            objects.append({"label": NAMES[shown[row, left - 4]], "polygon": box})
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    polygons = labels / f"{stem}_gtFine_polygons.json"
    polygons.write_text(json.dumps(content))
    json2labelImg(str(polygons), str(labels / f"{stem}_gtFine_labelIds.png"), "ids")
    json2labelImg(str(polygons), str(labels / f"{stem}_gtFine_labelTrainIds.png"), "trainIds")
    # The program beside it saves with a mode that Pillow 13 no longer writes.
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
    Image.fromarray(instances).save(labels / f"{stem}_gtFine_instanceIds.png")
    return image


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The folder of data sets; both sets of the project are registered there, and an instance set."""
    folder = tmp_path_factory.mktemp("sets")
    root = folder / "cityscapes"
    images = [write_city(root, city, number) for city in ("berlin", "bonn") for number in range(2)]
    convert2panoptic(str(root / "gtFine"), setNames=["val"])
    register_all(folder)
    DatasetCatalog.register(
        INSTANCE, lambda: [{"file_name": str(image), "image_id": image.stem} for image in images]
    )
    things = [name for name, label in name2label.items() if label.hasInstances and not label.ignoreInEval]
    MetadataCatalog.get(INSTANCE).set(
        evaluator_type="cityscapes_instance",
        gt_dir=str(root / "gtFine/val"),
        thing_classes=things,
        thing_dataset_id_to_contiguous_id={name2label[name].id: index for index, name in enumerate(things)},
    )
    yield folder
    DatasetCatalog.remove(INSTANCE)
    MetadataCatalog.remove(INSTANCE)
    register_all()


def case(name, num_classes, folder, classes=CLASSES, head=ColorHead, tasks=None):
    cfg = seam_config(name, MetadataCatalog.get(name).evaluator_type, num_classes, folder, tasks)
    return cfg, color_model(cfg, classes, None, head)


@pytest.mark.parametrize("head", [ColorHead, PixelColorHead])
def test_semantic_scores_are_the_same_on_every_way(city, tmp_path, head):
    cfg, model = case(SEMANTIC, 19, tmp_path, head=head)
    scores = Trainer.test(cfg, model)["sem_seg"]
    assert 0 < scores["IoU"] < 100
    assert set(scores) == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}
    assert_same_scores({"sem_seg": Trainer.test_with_tta(cfg, model)["sem_seg_TTA"]}, {"sem_seg": scores})
    files = scores_of_files(cfg, model, ["sem_seg"], tmp_path)
    assert files["sem_seg"]["mIoU"] == pytest.approx(scores["IoU"], abs=1e-9)


def test_panoptic_scores_are_the_same_on_every_way(city, tmp_path):
    cfg, model = case(PANOPTIC, 19, tmp_path)
    scores = Trainer.test(cfg, model)
    assert set(scores) == {"sem_seg", "panoptic_seg"}
    assert 0 < scores["panoptic_seg"]["PQ"] < 100
    files = scores_of_files(cfg, model, ["panoptic_seg", "sem_seg"], tmp_path)
    assert_same_scores({"panoptic_seg": files["panoptic_seg"]}, scores)
    assert files["sem_seg"]["mIoU"] == pytest.approx(scores["sem_seg"]["IoU"], abs=1e-9)
    augmented = Trainer.test_with_tta(cfg, model)
    assert_same_scores({"sem_seg": augmented["sem_seg_TTA"]}, scores)


def test_instance_scores_are_those_of_the_masks(city, tmp_path):
    thing_index = MetadataCatalog.get(INSTANCE).thing_classes.index
    classes = [None] * 4 + [thing_index("person"), thing_index("car")]
    cfg, model = case(INSTANCE, 8, tmp_path, classes)
    scores = Trainer.test(cfg, model)["segm"]
    # Masks four pixels off overlap with the truth by less than 0.95 and by more than 0.5.
    assert scores["AP50"] == pytest.approx(100)
    assert 0 < scores["AP"] < 100
    with pytest.raises(ValueError, match="Test-time augmentation averages semantic results"):
        Trainer.test_with_tta(cfg, model)


@pytest.mark.parametrize("num_classes", [1, 2, 300])
@pytest.mark.parametrize("name", [SEMANTIC, PANOPTIC])
def test_another_number_of_classes_is_one_line(city, tmp_path, name, num_classes):
    cfg, model = case(SEMANTIC, num_classes, tmp_path, [0, None, None, None, None, None])
    cfg.DATASETS.TEST = (name,)
    for evaluate in (Trainer.test, Trainer.test_with_tta):
        with pytest.raises(ValueError, match=r"found \(\d+, 48, 64\); Cityscapes has 19 .*NUM_CLASSES"):
            evaluate(cfg, model)


def test_an_instance_of_an_unknown_class_is_one_line(city, tmp_path):
    cfg, model = case(INSTANCE, 300, tmp_path, [299, None, None, None, None, None])
    model.rules = model.rules.__class__(tasks=("instance",), top_k=2)
    with pytest.raises(ValueError, match=r"predicted class 299; Cityscapes has 8 .*NUM_CLASSES"):
        Trainer.test(cfg, model)


def test_an_image_without_truth_is_an_error_and_not_an_exit(city, tmp_path):
    """An image of another city in `gt_dir` is in nobody's predictions: cityscapesscripts calls sys.exit."""
    cfg, model = case(SEMANTIC, 19, tmp_path)
    extra = write_city(city / "cityscapes", "cologne", 0)
    extra.unlink()
    extra.parent.rmdir()
    try:
        with pytest.raises(RuntimeError, match=r"no prediction for ground truth .*cologne_000000.*gt_dir"):
            Trainer.test(cfg, model)
    finally:
        for file in (city / "cityscapes/gtFine/val/cologne").iterdir():
            file.unlink()


def test_the_ground_truth_check_passes(city, tmp_path):
    cfg, _ = case(PANOPTIC, 19, tmp_path)
    check_ground_truth(cfg, [SEMANTIC, PANOPTIC])


def test_train_net_evaluates_it(city, tmp_path):
    """A whole program, with a network of random weights: its scores are those of the same weights here."""
    opts = [
        *(*OPTS, "OUTPUT_DIR", str(tmp_path / "output"), "DATASETS.TRAIN", f"('{PANOPTIC}',)"),
        *("DATASETS.TEST", f"('{PANOPTIC}',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"),
        *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"),
        *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False", "MODEL.DEVICE", "cpu"),
    ]
    cfg = load_config(CONFIG, opts)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    expected = Trainer.test(cfg, model)
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG), "--eval-only"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(city), "OMP_NUM_THREADS": "1"}
    weights = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth")]
    score = [["sem_seg", "IoU", float(expected["sem_seg"]["IoU"]), 1e-6]]
    done = subprocess.run(
        [*command, *opts, *weights, "TEST.EXPECTED_RESULTS", str(score)],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Results verification passed" in done.stdout + done.stderr
