"""Layouts of a user's own data: what is found in a folder, and the samples that follow from it."""

import random

import numpy as np
import own_layouts as exports
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from mask_former.config import load_config
from mask_former.data.mapper import TrainingMapper
from mask_former.data.own.layouts import find_dataset, register, summary
from mask_former.formats import read_semantic_label

SMALL = [
    *("INPUT.MIN_SIZE_TRAIN", "(20,36)", "INPUT.MAX_SIZE_TRAIN", 60, "INPUT.FORMAT", "RGB"),
    *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(18,24)"),
]


def training_samples(dataset):
    """Return the registered training set's samples of the mapper, each with a fixed seed."""
    name = register(dataset)["train"]
    opts = ["DATASETS.TRAIN", f"('{name}',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(dataset.classes)]
    opts += ["INPUT.DATASET_MAPPER_NAME", f"mask_former_{dataset.task}"]
    mapper = TrainingMapper(load_config(opts=[*SMALL, *opts]))
    samples = []
    for number, entry in enumerate(DatasetCatalog.get(name)):
        np.random.seed(number)
        random.seed(number)
        samples.append(mapper(entry))
    return samples


def assert_equal_samples(samples, expected):
    assert len(samples) == len(expected) == 4
    for sample, other in zip(samples, expected, strict=True):
        assert torch.equal(sample["image"], other["image"])
        assert torch.equal(sample["instances"].gt_classes, other["instances"].gt_classes)
        assert torch.equal(sample["instances"].gt_masks, other["instances"].gt_masks)
        assert ("sem_seg" in sample) == ("sem_seg" in other)
        assert "sem_seg" not in sample or torch.equal(sample["sem_seg"], other["sem_seg"])


def pairs_of(table):
    return [(layout, export) for layout, each in table.items() for export in each]


@pytest.fixture(scope="module")
def scenes():
    return exports.draw_scenes()


@pytest.fixture(scope="module")
def semantic_samples(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic")
    exports.splits_above(folder, scenes)
    return training_samples(find_dataset(folder))


@pytest.mark.parametrize(("layout", "export"), pairs_of(exports.SEMANTIC))
def test_semantic_layouts_give_the_same_samples(layout, export, scenes, semantic_samples, tmp_path):
    export(tmp_path, scenes)
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.task, dataset.classes) == (layout, "semantic", exports.CLASSES)
    assert [len(records) for records in dataset.splits.values()] == [4, 2]
    assert_equal_samples(training_samples(dataset), semantic_samples)


@pytest.fixture(scope="module")
def instance_samples(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instance")
    exports.coco_instances(folder, scenes)
    return training_samples(find_dataset(folder))


@pytest.mark.parametrize(("layout", "export"), pairs_of(exports.INSTANCE))
def test_instance_layouts_give_the_same_samples(layout, export, scenes, instance_samples, tmp_path):
    export(tmp_path, scenes)
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.task, dataset.classes) == (layout, "instance", exports.THINGS)
    assert_equal_samples(training_samples(dataset), instance_samples)


def test_panoptic_segments_are_those_of_the_semantic_label(scenes, semantic_samples, tmp_path):
    exports.coco_panoptic(tmp_path, scenes)
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.classes) == ("coco-panoptic", exports.CLASSES)
    assert dataset.thing_classes == {2}
    panoptic = training_samples(dataset)
    for sample, other in zip(panoptic, semantic_samples, strict=True):
        assert torch.equal(sample["image"], other["image"])
        order = sample["instances"].gt_classes.argsort()
        assert torch.equal(sample["instances"].gt_classes[order], other["instances"].gt_classes)
        assert torch.equal(sample["instances"].gt_masks[order], other["instances"].gt_masks)


def test_masks_of_classes_are_one_label_with_a_background(tmp_path):
    scenes = exports.draw_scenes(void=False)
    exports.class_masks(tmp_path / "masks", scenes)
    exports.splits_above(tmp_path / "maps", scenes)
    dataset = find_dataset(tmp_path / "masks")
    assert (dataset.layout, dataset.classes) == ("class-masks", ("background", "car", "road"))
    # The folders of classes give another order of classes than the file that the maps have.
    (tmp_path / "masks/classes.txt").write_text("road\ncar\n")
    dataset = find_dataset(tmp_path / "masks")
    assert dataset.classes == exports.CLASSES
    assert_equal_samples(training_samples(dataset), training_samples(find_dataset(tmp_path / "maps")))


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_binary_masks_are_background_and_one_class(values, tmp_path):
    scenes = exports.draw_scenes(void=False)
    exports.binary_masks(tmp_path / "masks", scenes)
    for path in (tmp_path / "masks").glob("*/masks/*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)), *values[::-1]).astype(np.uint8)).save(path)
    dataset = find_dataset(tmp_path / "masks")
    assert (dataset.layout, dataset.classes) == ("binary-masks", ("background", "thing"))
    exports.splits_above(
        tmp_path / "maps", [scene._replace(label=np.minimum(scene.label, 1)) for scene in scenes]
    )
    (tmp_path / "maps/classes.txt").write_text("background\nthing\n")
    assert_equal_samples(
        training_samples(dataset), training_samples(find_dataset(tmp_path / "maps", "label-maps"))
    )


def test_cityscapes_label_ids_become_the_19_classes(scenes, tmp_path):
    exports.cityscapes(tmp_path, scenes)
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, len(dataset.classes), dataset.stray_labels) == ("cityscapes", 19, ())
    for scene, entry in zip(scenes, [e for records in dataset.splits.values() for e in records], strict=True):
        names = np.array([*dataset.classes, "void"])[np.minimum(read_semantic_label(entry), 19)]
        expected = np.array(["building", "road", "car", "void"])[np.minimum(scene.label, 3)]
        assert np.array_equal(names, expected)


def test_one_set_is_split_by_the_seed(tmp_path):
    exports.unsplit(tmp_path, exports.draw_scenes(count=10))
    parts = [find_dataset(tmp_path, seed=seed).splits for seed in (0, 0, 1)]
    assert [len(parts[0][split]) for split in ("train", "val")] == [8, 2]
    assert parts[0] == parts[1] != parts[2]
    names = {entry["file_name"] for records in parts[0].values() for entry in records}
    assert len(names) == 10
    assert summary(find_dataset(tmp_path, seed=3)) == (
        "semantic label maps, 3 classes from classes.txt, 8 training and 2 validation pictures, "
        "split by seed 3"
    )
