"""Evaluators by type and switch, instances of panoptic sets, and the look at the ground truth."""

import importlib.util
import json
import os

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask_former.config import load_config
from mask_former.evaluation import (
    EVALUATORS,
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluators,
    check_ground_truth,
)
from mask_former.evaluation.cityscapes import CityscapesInstance, CityscapesSemantic
from mask_former.formats import id_to_rgb

NAME = "evaluation_build_test"
# Classes 1 and 3 are things: neither first nor next to each other, as in ADE20K.
NAMES = ["sky", "ball", "road", "tree"]
ALL_ON = {"SEMANTIC_ON": True, "PANOPTIC_ON": True, "INSTANCE_ON": True}


def config(tmp_path, **switches):
    opts = [part for key, value in switches.items() for part in (f"MODEL.MASK_FORMER.TEST.{key}", value)]
    return load_config(None, [*opts, "OUTPUT_DIR", str(tmp_path / "output")])


def labels_of(number):
    """Sky over road, a ball left and a tree right, of uneven sizes."""
    labels = np.full((24, 31), 0)
    labels[14:] = 2
    labels[3 + number : 16, 4:12] = 1
    labels[8:20, 18 : 24 + number] = 3
    return labels


@pytest.fixture
def dataset(tmp_path):
    entries, annotations = [], []
    for number in range(3):
        labels = labels_of(number)
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        Image.fromarray(id_to_rgb(labels * 300 + 1)).save(tmp_path / f"panoptic_{number}.png")
        Image.new("RGB", (31, 24)).save(tmp_path / f"{number}.jpg")
        for index in (1, 3):
            mask = np.asfortranarray(labels == index, dtype=np.uint8)
            rle = pycocotools.mask.encode(mask)
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            box = [float(value) for value in pycocotools.mask.toBbox(rle)]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 20 + index}
            annotation |= {"segmentation": segmentation, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}
            annotations.append(annotation)
        entries.append(
            {
                "file_name": str(tmp_path / f"{number}.jpg"),
                "image_id": number,
                "sem_seg_file_name": str(tmp_path / f"{number}.png"),
                "pan_seg_file_name": str(tmp_path / f"panoptic_{number}.png"),
                "segments_info": [{"id": 300 * c + 1, "category_id": c, "iscrowd": 0} for c in range(4)],
            }
        )
    truth = {
        "info": {},
        "images": [{"id": number, "height": 24, "width": 31} for number in range(3)],
        "annotations": annotations,
        "categories": [{"id": 21, "name": "ball"}, {"id": 23, "name": "tree"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    DatasetCatalog.register(NAME, lambda: entries)
    MetadataCatalog.get(NAME).set(
        evaluator_type="shapes_panoptic_seg",
        thing_classes=NAMES,
        stuff_classes=NAMES,
        thing_dataset_id_to_contiguous_id={21: 1, 23: 3},
        stuff_dataset_id_to_contiguous_id={20: 0, 21: 1, 22: 2, 23: 3},
        ignore_label=255,
        json_file=str(tmp_path / "instances.json"),
    )
    yield entries
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def set_metadata(**values):
    for key, value in values.items():
        delattr(MetadataCatalog.get(NAME), key)
        setattr(MetadataCatalog.get(NAME), key, value)


def parts(evaluator):
    return [type(part) for part in getattr(evaluator, "_evaluators", [evaluator])]


@pytest.mark.parametrize(
    ("kind", "switches", "expected"),
    [
        ("sem_seg", {}, [SemanticEvaluator]),
        ("ade20k_panoptic_seg", ALL_ON, [SemanticEvaluator, PanopticEvaluator, InstanceEvaluator]),
        ("coco_panoptic_seg", {"SEMANTIC_ON": False, "PANOPTIC_ON": True}, [PanopticEvaluator]),
        ("shapes_panoptic_seg", {"PANOPTIC_ON": True}, [SemanticEvaluator, PanopticEvaluator]),
        ("coco", {"INSTANCE_ON": True}, [InstanceEvaluator]),
        ("cityscapes_panoptic_seg", ALL_ON, [CityscapesSemantic, PanopticEvaluator]),
        ("cityscapes_sem_seg", {}, [CityscapesSemantic]),
        ("cityscapes_instance", {"INSTANCE_ON": True}, [CityscapesInstance]),
    ],
)
def test_type_and_switches_choose_the_evaluators(dataset, tmp_path, kind, switches, expected):
    set_metadata(evaluator_type=kind)
    assert parts(build_evaluators(config(tmp_path, **switches), NAME, tmp_path)) == expected


def test_type_that_leaves_nothing_to_evaluate_names_the_switches(dataset, tmp_path):
    set_metadata(evaluator_type="coco")
    with pytest.raises(ValueError, match=r"set MODEL\.MASK_FORMER\.TEST\.INSTANCE_ON True"):
        build_evaluators(config(tmp_path), NAME, tmp_path)


def test_unknown_type_lists_the_choices(dataset, tmp_path):
    set_metadata(evaluator_type="pets")
    with pytest.raises(KeyError) as error:
        build_evaluators(config(tmp_path), NAME, tmp_path)
    assert "'pets'" in str(error.value)
    assert all(kind in str(error.value) for kind in EVALUATORS)


def test_panoptic_set_without_instance_annotations_is_evaluated_for_the_rest(dataset, tmp_path):
    set_metadata(json_file=None)
    evaluator = build_evaluators(config(tmp_path, **ALL_ON), NAME, tmp_path)
    assert parts(evaluator) == [SemanticEvaluator, PanopticEvaluator]


class Echo(torch.nn.Module):
    """Gives the truth back, with the tree of one picture cut in half."""

    def forward(self, inputs):
        return [self.result(torch.from_numpy(labels_of(entry["image_id"])), entry) for entry in inputs]

    def result(self, labels, entry):
        masks = torch.stack([labels == 1, labels == 3, labels == 2])
        if entry["image_id"] == 1:
            masks[1, :, 21:] = False
        instances = Instances(tuple(labels.shape), pred_masks=masks, scores=torch.tensor([0.9, 0.8, 0.7]))
        instances.pred_classes = torch.tensor([1, 3, 2])  # road is no thing: left out
        edges = [torch.nonzero(mask) for mask in masks]
        corners = [torch.cat([edge.amin(0).flip(0), edge.amax(0).flip(0) + 1]) for edge in edges]
        instances.pred_boxes = Boxes(torch.stack(corners).float())
        infos = [{"id": c + 1, "category_id": c, "isthing": c % 2 == 1} for c in range(4)]
        return {"sem_seg": labels, "panoptic_seg": (labels + 1, infos), "instances": instances}


def test_all_three_results_are_scored_in_one_evaluation(dataset, tmp_path):
    evaluator = build_evaluators(config(tmp_path, **ALL_ON), NAME)
    assert isinstance(evaluator, DatasetEvaluators)
    loader = [[entry] for entry in dataset]
    results = inference_on_dataset(Echo(), loader, evaluator)
    assert results["sem_seg"]["mIoU"] == results["panoptic_seg"]["PQ"] == 100
    assert results["segm"]["AP-ball"] == pytest.approx(100)
    # Two trees of three are whole, the third has IoU 1/2 or less.
    assert 50 < results["segm"]["AP-tree"] < 80
    assert results["segm"]["AP"] == pytest.approx(
        (results["segm"]["AP-ball"] + results["segm"]["AP-tree"]) / 2
    )
    saved = json.loads((tmp_path / "output" / "inference" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in saved} == {21, 23}


def test_annotations_that_the_data_set_writes_when_loaded_are_found(dataset, tmp_path):
    path = tmp_path / "instances.json"
    content = path.read_text()
    path.unlink()
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: path.write_text(content) and dataset)
    evaluator = InstanceEvaluator(NAME, output_dir=tmp_path)
    evaluator.process(dataset, Echo()(dataset))
    assert evaluator.evaluate()["bbox"]["AP-ball"] == pytest.approx(100)


def test_annotations_of_other_categories_are_refused(dataset, tmp_path):
    set_metadata(thing_dataset_id_to_contiguous_id={1: 1, 3: 3})
    with pytest.raises(ValueError, match=r"instances\.json: category ids \[21, 23\] are not in"):
        InstanceEvaluator(NAME, output_dir=tmp_path)


def test_whole_ground_truth_passes(dataset, tmp_path):
    check_ground_truth(config(tmp_path, **ALL_ON), [NAME])


def write_labels(path, value):
    labels = np.zeros((24, 31), np.uint8)
    labels[3, 4] = value
    Image.fromarray(labels).save(path)


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda f: (f / "2.png").unlink(),
            FileNotFoundError,
            r"1 of 9 files are missing, the first .*2\.png",
        ),
        (lambda f: (f / "0.jpg").unlink(), FileNotFoundError, r"0\.jpg"),
        (lambda f: write_labels(f / "1.png", 4), ValueError, r"1\.png: found labels 4; allowed are 0\.\.3"),
        (lambda f: cut(f / "1.png"), ValueError, r"1\.png cannot be read"),
        (lambda f: cut(f / "panoptic_2.png"), ValueError, r"panoptic_2\.png cannot be read"),
        (lambda f: Image.new("RGB", (9, 9), (9, 0, 0)).save(f / "panoptic_0.png"), ValueError, r"ids \[9\]"),
        (lambda f: (f / "instances.json").unlink(), FileNotFoundError, r"instances\.json are missing"),
        (lambda f: cut(f / "instances.json"), ValueError, r"instances\.json: expected COCO instance"),
        (lambda f: (f / "instances.json").write_text("[]"), ValueError, r"instances\.json: expected COCO"),
    ],
)
def test_damage_is_found_before_training(dataset, tmp_path, damage, error, message):
    damage(tmp_path)
    with pytest.raises(error, match=message):
        check_ground_truth(config(tmp_path, **ALL_ON), [NAME])


def test_instance_file_of_other_pictures_is_found_before_training(dataset, tmp_path):
    dataset[1]["image_id"] = 500
    with pytest.raises(ValueError, match=r"lists no image with the id of 1 of the 3 pictures .*1\.jpg"):
        check_ground_truth(config(tmp_path, **ALL_ON), [NAME])


def test_results_that_are_not_asked_for_need_no_ground_truth(dataset, tmp_path):
    (tmp_path / "instances.json").unlink()
    cut(tmp_path / "panoptic_0.png")
    check_ground_truth(config(tmp_path), [NAME])


@pytest.mark.skipif(importlib.util.find_spec("cityscapesscripts") is not None, reason="it is installed")
def test_missing_package_is_named_with_the_command_to_install_it(dataset, tmp_path):
    set_metadata(evaluator_type="cityscapes_sem_seg")
    with pytest.raises(ImportError, match="pip install cityscapesscripts"):
        check_ground_truth(config(tmp_path), [NAME])
