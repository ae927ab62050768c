"""Layouts of a user's own data: what is found in a folder, and the samples that follow from it."""

import json
import random
from pathlib import Path

import numpy as np
import own_layouts as exports
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask_former.config import load_config
from mask_former.data import convert
from mask_former.data.mapper import TrainingMapper
from mask_former.data.own.classes import find_classes
from mask_former.data.own.layouts import find_dataset, register, summary
from mask_former.evaluation import InstanceEvaluator, build_evaluators, check_ground_truth
from mask_former.formats import (
    decode_mask,
    draw_polygons,
    read_panoptic_map,
    read_picture,
    read_semantic_label,
)

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


def true_result(task, entry, scene):
    """Return the drawn truth of a picture in the form of a model's result."""
    if task == "semantic":
        return {"sem_seg": torch.from_numpy(scene.label.astype(np.int64))}
    if task == "panoptic":
        ids = torch.from_numpy(np.where(scene.label == exports.VOID, 0, scene.label.astype(np.int64) + 1))
        infos = [{"id": i + 1, "category_id": i, "isthing": i == 2} for i in range(len(exports.CLASSES))]
        return {"panoptic_seg": (ids, infos)}
    masks = torch.from_numpy(np.stack([scene.mask(number) for number in range(len(scene.objects))]))
    instances = Instances(scene.label.shape)
    instances.pred_masks = masks
    instances.pred_classes = torch.tensor([class_id for class_id, _ in scene.objects])
    instances.scores = torch.ones(len(masks))
    corners = [np.reshape(polygon, (-1, 2)) for _, polygon in scene.objects]
    boxes = [[*points.min(axis=0), *points.max(axis=0)] for points in corners]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    return {"instances": instances}


@pytest.mark.parametrize(
    ("export", "scores"),
    [
        (exports.color_labels, {"sem_seg": ["mIoU", "pACC"]}),
        (exports.void_by_name, {"sem_seg": ["mIoU", "pACC"]}),
        (exports.coco_panoptic, {"panoptic_seg": ["PQ", "SQ"]}),
        (exports.roboflow, {"bbox": ["AP"], "segm": ["AP", "AP-car", "AP-tree"]}),
        (exports.yolo, {"bbox": ["AP"], "segm": ["AP", "AP-car", "AP-tree"]}),
        (exports.labelme, {"bbox": ["AP"], "segm": ["AP", "AP-car", "AP-tree"]}),
    ],
)
def test_the_truth_scores_100(export, scores, scenes, tmp_path):
    export(tmp_path / "data", scenes)
    dataset = find_dataset(tmp_path / "data")
    name = register(dataset)["val"]
    switches = [
        part
        for task in ("semantic", "panoptic", "instance")
        for part in (f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON", task == dataset.task)
    ]
    cfg = load_config(opts=[*switches, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(dataset.classes)])
    cfg.OUTPUT_DIR = str(tmp_path)
    check_ground_truth(cfg, [name])
    evaluator = build_evaluators(cfg, name)
    for entry, scene in zip(DatasetCatalog.get(name), scenes[4:], strict=True):
        evaluator.process([entry], [true_result(dataset.task, entry, scene)])
    results = evaluator.evaluate()
    found = {(task, key): results[task][key] for task, keys in scores.items() for key in keys}
    assert found == pytest.approx(dict.fromkeys(found, 100))


def test_wrong_instances_do_not_score_100(scenes, tmp_path):
    exports.yolo(tmp_path / "data", scenes)
    name = register(find_dataset(tmp_path / "data"))["val"]
    evaluator = InstanceEvaluator(name, output_dir=tmp_path)
    for entry, scene in zip(DatasetCatalog.get(name), scenes[4:], strict=True):
        result = true_result("instance", entry, scene)
        result["instances"].pred_classes = 1 - result["instances"].pred_classes
        evaluator.process([entry], [result])
    assert evaluator.evaluate()["segm"]["AP"] == 0


@pytest.mark.parametrize(
    ("values", "ignore_label", "note"),
    [
        ({0, 1, 2}, 255, ""),
        ({0, 2, 255}, 255, ""),
        ({0, 1, 3}, 3, "value 3 is void"),
        ({1, 2, 3}, 255, ""),  # counted from 1
        ({0, 3, 4}, 255, ""),
        ({0, 3, 255}, 255, ""),
        ({0, 65535}, 65535, "value 65535 is void"),
    ],
)
def test_one_value_after_the_classes_is_void(values, ignore_label, note, tmp_path):
    exports.unsplit(tmp_path, exports.draw_scenes(count=4))
    for path in (tmp_path / "labels").iterdir():
        label = np.resize(sorted(values), Image.open(path).size[::-1]).astype(np.uint16)
        Image.fromarray(label).save(path)
    dataset = find_dataset(tmp_path)
    assert dataset.ignore_label == ignore_label
    assert [text for text in dataset.notes if "void" in text] == ([note] if note else [])


def test_missing_labels_and_labels_without_a_picture_are_kept_for_the_check(scenes, tmp_path):
    exports.splits_above(tmp_path, scenes)
    (tmp_path / "train/labels/scene_1.png").unlink()
    (tmp_path / "train/images/scene_2.png").unlink()
    dataset = find_dataset(tmp_path)
    keys = {Path(entry["file_name"]).stem: set(entry) for entry in dataset.splits["train"]}
    assert keys["scene_1"] == {"file_name"}
    assert "scene_2" not in keys
    assert dataset.stray_labels == (tmp_path / "train/labels/scene_2.png",)


def test_what_a_coco_file_leaves_out_follows(scenes, tmp_path):
    exports.roboflow(tmp_path, scenes)
    expected = find_dataset(tmp_path).splits["train"]
    path = tmp_path / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    for annotation in content["annotations"]:
        del annotation["bbox"], annotation["area"], annotation["iscrowd"]
        annotation["category_id"] = str(annotation["category_id"])
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["segmentation"].append([1, 2, 3, 4])
    path.write_text(json.dumps(content))
    found = find_dataset(tmp_path).splits["train"]
    for entry, other in zip(found, expected, strict=True):
        assert (entry["height"], entry["width"]) == (other["height"], other["width"])
        assert [a["bbox"] for a in entry["annotations"]] == [a["bbox"] for a in other["annotations"]]
        assert [a["segmentation"] for a in entry["annotations"]] == [
            a["segmentation"] for a in other["annotations"]
        ]
    classes = [[a["category_id"] for a in entry["annotations"]] for entry in found]
    assert classes == [[-1, 1], [0, 1], [0, 1], [0, 1]]


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: (f / "classes.txt").unlink(),
            r"What each lacks:\n.*label-maps.*classes\.txt.*found.*0, 1, 2, 255",
        ),
        (lambda f: (f / "classes.txt").write_text("a\nb\na\n"), r"classes\.txt has two classes 'a'"),
        (lambda f: write(f, classes_dot_json="[1, 2]"), r"classes\.json: expected a list such as"),
        (lambda f: write(f, train_dot_txt="scene_0\nscene_9\n"), r"train\.txt: line 2 is 'scene_9'"),
        (lambda f: [p.unlink() for p in (f / "labels").iterdir()], r"label-maps.*a folder of pictures"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_with_what_it_lacks(change, words, tmp_path):
    exports.unsplit(tmp_path, exports.draw_scenes(count=4))
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_dataset(tmp_path)


def test_two_layouts_in_a_folder_are_listed_and_one_can_be_named(scenes, tmp_path):
    exports.splits_above(tmp_path, scenes)
    exports.coco_instances(tmp_path, scenes)
    with pytest.raises(ValueError, match=r"several layouts: label-maps, coco-instance\. Name one"):
        find_dataset(tmp_path)
    assert find_dataset(tmp_path, "coco-instance").task == "instance"
    with pytest.raises(ValueError, match=r"has not the layout yolo: it lacks data\.yaml"):
        find_dataset(tmp_path, "yolo")
    with pytest.raises(ValueError, match="No layout 'voc2'; choose one of label-maps"):
        find_dataset(tmp_path, "voc2")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 has a box after the class"),
        ("2 0 0 1 0 1 1", "line 1 has class 2; the names give 0 to 1"),
        ("car 0 0 1 0 1 1", "line 1 is 'car 0 0"),
    ],
)
def test_a_yolo_line_that_is_no_polygon_is_named_when_its_record_is_taken(line, words, scenes, tmp_path):
    exports.yolo(tmp_path, scenes)
    (tmp_path / "labels/train/scene_1.txt").write_text(line)
    records = find_dataset(tmp_path).splits["train"]
    assert len(records[0]["annotations"]) == 2
    with pytest.raises(ValueError, match=rf"scene_1\.txt: {words}"):
        records[1]


def test_labelme_groups_rectangles_circles_and_ignored_areas(scenes, tmp_path):
    exports.labelme(tmp_path, scenes)
    path = tmp_path / "train/scene_0.json"
    content = json.loads(path.read_text())
    content["shapes"] = [
        {"label": "car", "points": [[2, 3], [8, 9]], "shape_type": "rectangle", "group_id": 5},
        {"label": "car", "points": [[20, 3], [26, 9]], "shape_type": "rectangle", "group_id": 5},
        {"label": "tree", "points": [[20, 20], [20, 25]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon"},
    ]
    path.write_text(json.dumps(content))
    dataset = find_dataset(tmp_path)
    assert dataset.classes == exports.THINGS
    car, tree, ignored = dataset.splits["train"][0]["annotations"]
    height, width = scenes[0].label.shape
    mask = draw_polygons(car["segmentation"], height, width)
    assert (mask.sum(), car["bbox"]) == (2 * 6 * 6, [2, 3, 24, 6])
    assert draw_polygons(tree["segmentation"], height, width).sum() == pytest.approx(np.pi * 25, rel=0.1)
    assert [a["iscrowd"] for a in (car, tree, ignored)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "names", "colors"),
    [
        ("classes.txt", "\ufeffroad\n\n traffic light \n", ["road", "traffic light"], None),
        (
            "classes.txt",
            "road 128 64 128\ntraffic light 1 2 3\n",
            ["road", "traffic light"],
            [(128, 64, 128), (1, 2, 3)],
        ),
        (
            "label_colors.txt",
            "64 128 64\tAnimal\n192 0 128\tArch\n",
            ["Animal", "Arch"],
            [(64, 128, 64), (192, 0, 128)],
        ),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\na:1,2,3::\nb:4,5,6::\n",
            ["a", "b"],
            [(1, 2, 3), (4, 5, 6)],
        ),
        ("class_dict.csv", "name,r,g,b\na b,1,2,3\nc,4,5,6\n", ["a b", "c"], [(1, 2, 3), (4, 5, 6)]),
        ("classes.json", '{"1": "b", "0": "a"}', ["a", "b"], None),
        ("classes.json", '{"classes": [{"name": "a", "color": [1, 2, 3]}]}', ["a"], [(1, 2, 3)]),
    ],
)
def test_classes_are_read_from_each_kind_of_table(name, text, names, colors, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert find_classes(tmp_path) == (names, colors, name)


@pytest.mark.parametrize(
    "train", ["/content/town/images/train", "images/train", ["./images/train"], "train.txt"]
)
def test_yolo_paths_of_other_machines_are_found(train, scenes, tmp_path):
    exports.yolo(tmp_path, scenes)
    (tmp_path / "data.yaml").write_text(json.dumps({"train": train, "names": {1: "tree", 0: "car"}}))
    (tmp_path / "train.txt").write_text("".join(f"./images/train/scene_{n}.png\n" for n in range(4)))
    dataset = find_dataset(tmp_path)
    assert dataset.classes == exports.THINGS
    records = [record for split in dataset.splits.values() for record in split]
    assert [len(record["annotations"]) for record in records] == [2] * 4


@pytest.mark.parametrize("export", [exports.yolo, exports.labelme])
def test_converted_instances_have_the_same_masks(export, scenes, tmp_path):
    export(tmp_path / "data", scenes)
    convert.main([str(tmp_path / "data"), str(tmp_path / "out")])
    dataset = find_dataset(tmp_path / "out")
    assert (dataset.layout, list(dataset.splits)) == ("coco-instance", ["train", "val"])
    # The masks are run lengths now, which an augmentation moves as pixels, so samples may differ.
    for entry, scene in zip(dataset.splits["train"], scenes, strict=False):
        assert np.array_equal(read_picture(entry["file_name"], "RGB"), scene.image)
        masks = [decode_mask(a["segmentation"]) for a in entry["annotations"]]
        assert np.array_equal(masks, [scene.mask(0), scene.mask(1)])


def test_semantic_labels_and_instances_become_panoptic_labels(scenes, tmp_path):
    exports.splits_below(tmp_path / "data", scenes)
    exports.coco_instances(tmp_path / "data", scenes)
    for path in (tmp_path / "data").glob("annotations/*.json"):
        content = json.loads(path.read_text())
        split = path.stem.removeprefix("instances_").removesuffix("2017")
        folder = {"train": "training", "val": "valid"}[split]
        for image in content["images"]:
            image["file_name"] = f"images/{folder}/{image['file_name']}"
        path.write_text(json.dumps(content))
    convert.main([str(tmp_path / "data"), str(tmp_path / "out")])
    dataset = find_dataset(tmp_path / "out")
    assert (dataset.layout, dataset.classes) == ("coco-panoptic", ("background", "road", "car", "tree"))
    assert dataset.thing_classes == {2, 3}
    for entry, scene in zip(dataset.splits["val"], scenes[4:], strict=True):
        ids = read_panoptic_map(entry["pan_seg_file_name"])
        class_of = np.full(ids.max() + 1, -1)
        for segment in entry["segments_info"]:
            class_of[segment["id"]] = segment["category_id"]
            assert segment["area"] == (ids == segment["id"]).sum()
        # Cars of the label that are no object are void, as is void.
        expected = np.where(scene.label < 2, scene.label.astype(int), -1)
        expected[scene.mask(0)] = 2
        expected[scene.mask(1)] = 3
        assert np.array_equal(class_of[ids], expected)


def test_a_folder_of_several_data_sets_is_none(scenes, tmp_path):
    exports.labelme(tmp_path / "one", scenes)
    exports.coco_instances(tmp_path / "two", scenes)
    for number in range(12):  # files of other programs, the most of all JSON files
        write(tmp_path, **{f"three__{number}_dot_json": "[]"})
    with pytest.raises(ValueError, match="labelme: a JSON file of the same name beside each picture"):
        find_dataset(tmp_path)
