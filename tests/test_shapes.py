"""The synthetic set: pictures, labels, files, catalogue."""

import colorsys
import json
import multiprocessing
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools.coco import COCO

from mask_former.data import shapes
from mask_former.data.datasets import datasets_root
from mask_former.data.shapes import ShapesSpec, ensure_set, register
from mask_former.data.shapes.__main__ import main
from mask_former.data.shapes.drawing import (
    CLASSES,
    TEXTURES,
    THING_COUNT,
    Thing,
    cover,
    draw_scene,
    sample_thing,
)
from mask_former.data.shapes.files import mask_to_segmentation

SPEC = ShapesSpec(train=7, val=40, size=96, seed=3)
SMALL = ShapesSpec(train=2, val=1, size=48, seed=11)
THINGS = ["circle", "square", "triangle", "star", "ring", "cross"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a small set; the catalogue points to it while the tests of this module run."""
    root = tmp_path_factory.mktemp("data sets")
    register(root, SPEC)
    ensure_set(root, SPEC)
    yield root
    register()


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return ensure_set(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def copied_set(small_set, tmp_path):
    return shutil.copytree(small_set, tmp_path / "shapes")


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([5, k]), 96, 96) for k in range(250)]


def read_ids(record):
    red, green, blue = np.moveaxis(np.array(Image.open(record["pan_seg_file_name"])).astype(int), -1, 0)
    return red + 256 * green + 65536 * blue


def read_labels(record):
    return np.array(Image.open(record["sem_seg_file_name"]))


def bytes_of_files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- pictures ---


def whole(name, radius=20.0, angle=0.3):
    index = THINGS.index(name)
    return Thing(index, 48.3, 47.6, radius, angle, 1.0, (0.0, 0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", np.pi * 0.92**2),
        ("square", 2 * 1.12**2),
        ("triangle", 3 * np.sqrt(3) / 4 * 1.2**2),
        ("star", 5 * 1.18 * 0.5 * np.sin(np.pi / 5)),
        ("ring", np.pi * (1 - 0.5**2)),
        ("cross", 4 * 0.34 * 1.02 * 2 - (2 * 0.34) ** 2),
    ],
)
def test_each_class_has_the_area_of_its_form(name, area):
    _, covered, whole_area = cover(whole(name), 96, 96)
    # Polygons of 48 corners for circles are 0.3 % small; the painted area is quantised at the rim.
    assert whole_area == pytest.approx(area * 20**2, rel=0.005)
    assert covered.sum() == pytest.approx(area * 20**2, rel=0.03)
    assert CLASSES[THINGS.index(name)]["name"] == name


def test_label_of_a_circle_is_the_pixels_whose_centre_lies_inside():
    (rows, columns), covered, _ = cover(whole("circle"), 96, 96)
    y, x = np.mgrid[rows, columns] + 0.5
    distance = np.hypot(x - 48.3, y - 47.6) - 0.92 * 20
    certain = abs(distance) > 0.3
    assert np.array_equal((covered >= 0.5)[certain], (distance < 0)[certain])
    assert certain.mean() > 0.9


def test_shape_outside_the_picture_has_no_cover():
    assert cover(whole("star")._replace(x=-40.0), 96, 96) is None


def test_textures_stand_in_the_order_of_the_stuff_classes():
    stuff = [entry["name"] for entry in CLASSES[THING_COUNT:]]
    assert [texture.__name__ for texture in TEXTURES] == [f"_{name}" for name in stuff]
    assert len(stuff) >= 4


def test_pictures_may_be_oblong():
    scene = draw_scene(np.random.default_rng(2), 64, 100)
    assert scene.image.shape == (64, 100, 3)
    assert scene.segments.shape == (64, 100)
    assert set(np.unique(scene.segments)) - {0} == set(range(1, len(scene.classes) + 1))


def test_every_class_occurs(scenes):
    assert {k for scene in scenes for k in scene.classes} == set(range(len(CLASSES)))


def test_some_pictures_have_no_thing_and_most_have(scenes):
    empty = np.mean([all(k >= THING_COUNT for k in scene.classes) for scene in scenes])
    assert 0.03 < empty < 0.2


def test_a_few_pixels_are_void(scenes):
    share = np.array([(scene.segments == 0).mean() for scene in scenes])
    assert 0.1 < (share > 0).mean() < 0.6
    assert 0.001 < share.mean() < 0.02


def test_instances_of_one_class_touch_now_and_then(scenes):
    def touch(scene):
        things = [n for n, k in enumerate(scene.classes, start=1) if k < THING_COUNT]
        for first in things:
            grown = cv2.dilate((scene.segments == first).astype(np.uint8), np.ones((3, 3))) > 0
            near = set(np.unique(scene.segments[grown])) - {0, first}
            if any(scene.classes[n - 1] == scene.classes[first - 1] for n in near):
                return True
        return False

    assert 0.1 < np.mean([touch(scene) for scene in scenes]) < 0.6


def hue(color):
    return colorsys.rgb_to_hsv(*(channel / 255 for channel in color))[0]


def test_a_shape_asked_for_by_class_has_hues_around_that_of_the_class():
    rng, blue = np.random.default_rng(1), THINGS.index("square")
    hues = [hue(sample_thing(rng, 96, 96, class_index=blue).color) for _ in range(200)]
    assert np.mean(hues) == pytest.approx(hue(CLASSES[blue]["color"]), abs=0.02)
    assert 0.03 < np.std(hues) < 0.08


def test_hue_leans_towards_the_class_but_does_not_tell_it(scenes):
    centres = np.array([hue(entry["color"]) for entry in CLASSES[:THING_COUNT]])
    told = []
    for scene in scenes:
        for number, class_index in enumerate(scene.classes, start=1):
            if class_index < THING_COUNT:
                away = abs(hue(scene.image[scene.segments == number].mean(0)) - centres)
                told.append(np.minimum(away, 1 - away).argmin() == class_index)
    assert 0.6 < np.mean(told) < 0.93


# --- labels in files ---


def test_semantic_and_panoptic_labels_agree_in_every_pixel(root):
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        labels = np.full((96, 96), 255)
        ids = read_ids(record)
        for info in record["segments_info"]:
            labels[ids == info["id"]] = info["category_id"]
        assert np.array_equal(labels, read_labels(record))


def test_panoptic_json_lists_each_segment_with_its_area_and_box(root):
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        ids = read_ids(record)
        assert set(np.unique(ids)) - {0} == {info["id"] for info in record["segments_info"]}
        for info in record["segments_info"]:
            rows, columns = np.nonzero(ids == info["id"])
            left, top, width, height = info["bbox"]
            assert info["area"] == len(rows)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            assert info["isthing"] == (info["category_id"] < len(THINGS))


def test_panoptic_ids_need_all_three_bytes(root):
    ids = [i["id"] for r in DatasetCatalog.get("shapes_panoptic_val") for i in r["segments_info"]]
    assert max(ids) > 65535


def test_instance_annotations_decode_to_exactly_the_panoptic_masks(root):
    coco = COCO(MetadataCatalog.get("shapes_instance_val").json_file)
    kinds = set()
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        ids = read_ids(record)
        things = [info for info in record["segments_info"] if info["isthing"]]
        annotations = coco.imgToAnns[record["image_id"]]
        assert len(annotations) == len(things)
        for annotation, info in zip(annotations, things, strict=True):
            kinds.add(type(annotation["segmentation"]))
            assert np.array_equal(coco.annToMask(annotation), ids == info["id"])
            assert annotation["area"] == info["area"]
            assert annotation["category_id"] == CLASSES[info["category_id"]]["id"]
    assert kinds == {list, dict}


def test_a_mask_with_a_hole_becomes_rle_and_one_in_two_parts_two_polygons():
    mask = np.zeros((20, 31), bool)
    mask[3:12, 5:9] = mask[4:6, 20:30] = True
    polygons = mask_to_segmentation(mask, [5, 3, 25, 9])
    assert len(polygons) == 2
    decoded = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, 20, 31)))
    assert np.array_equal(decoded, mask)
    mask[6, 6] = False
    assert np.array_equal(mask_util.decode(mask_to_segmentation(mask, [5, 3, 25, 9])), mask)


def test_the_three_sets_share_files_and_image_ids(root):
    for split, count in (("train", 7), ("val", 40)):
        panoptic = DatasetCatalog.get(f"shapes_panoptic_{split}")
        assert len(panoptic) == count
        for task in ("sem_seg", "instance"):
            for one, other in zip(panoptic, DatasetCatalog.get(f"shapes_{task}_{split}"), strict=True):
                assert {
                    k: other[k] for k in ("file_name", "image_id", "height", "width")
                }.items() <= one.items()
    assert Image.open(panoptic[0]["file_name"]).size == (96, 96)


def test_semantic_records_hold_no_panoptic_label(root):
    assert set(DatasetCatalog.get("shapes_sem_seg_train")[0]) == {
        *("file_name", "image_id", "height", "width", "sem_seg_file_name")
    }


def test_pictures_without_things_stay_in_the_instance_set(root):
    counts = [len(record["annotations"]) for record in DatasetCatalog.get("shapes_instance_val")]
    assert 0 in counts
    assert max(counts) > 1


# --- consumers ---


def perfect_results(record):
    """What a model that makes no mistake returns for a record of the panoptic set."""
    ids, labels = read_ids(record), read_labels(record)
    things = [info for info in record["segments_info"] if info["isthing"]]
    instances = Instances(ids.shape)
    instances.pred_masks = torch.from_numpy(
        np.stack([ids == i["id"] for i in things] or [ids < 0])[: len(things)]
    )
    instances.pred_classes = torch.tensor([i["category_id"] for i in things], dtype=torch.int64)
    instances.scores = torch.ones(len(things))
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (i["bbox"] for i in things)]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    scores = torch.from_numpy(labels).long()
    scores[scores == 255] = 0
    return {"instances": instances, "sem_seg": torch.nn.functional.one_hot(scores, 11).permute(2, 0, 1)}


@pytest.mark.parametrize(
    ("evaluator", "path"), [(SemSegEvaluator, ("sem_seg", "mIoU")), (COCOEvaluator, ("segm", "AP"))]
)
def test_detectron2_gives_perfect_results_full_marks(root, tmp_path, evaluator, path):
    options = {"tasks": ("segm",)} if evaluator is COCOEvaluator else {}
    judge = evaluator("shapes_panoptic_val", distributed=False, output_dir=str(tmp_path), **options)
    judge.reset()
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        judge.process([record], [perfect_results(record)])
    results = judge.evaluate()
    assert results[path[0]][path[1]] == pytest.approx(100)


def test_detectron2_draws_every_kind_of_label(root):
    metadata = MetadataCatalog.get("shapes_panoptic_val")
    record = next(
        r for r in DatasetCatalog.get("shapes_panoptic_val") if any(i["isthing"] for i in r["segments_info"])
    )
    image = np.array(Image.open(record["file_name"]))
    ids = torch.from_numpy(read_ids(record))
    pictures = [
        Visualizer(image, metadata).draw_panoptic_seg(ids, record["segments_info"]),
        Visualizer(image, metadata).draw_sem_seg(read_labels(record)),
        Visualizer(image, metadata).draw_instance_predictions(perfect_results(record)["instances"]),
    ]
    for picture in pictures:
        assert (picture.get_image() != image).mean() > 0.02


def test_metadata_has_the_keys_of_its_task():
    panoptic = MetadataCatalog.get("shapes_panoptic_train")
    assert panoptic.thing_classes == THINGS
    assert panoptic.stuff_classes[: len(THINGS)] == THINGS
    assert len(panoptic.stuff_classes) == len(panoptic.stuff_colors) == 11
    assert list(panoptic.thing_dataset_id_to_contiguous_id.values()) == list(range(6))
    assert list(panoptic.stuff_dataset_id_to_contiguous_id.values()) == list(range(11))
    assert all(k != v for k, v in panoptic.stuff_dataset_id_to_contiguous_id.items())
    assert (panoptic.ignore_label, panoptic.label_divisor) == (255, 1000)
    types = [
        MetadataCatalog.get(f"shapes_{t}_val").evaluator_type for t in ("sem_seg", "panoptic", "instance")
    ]
    assert types == ["sem_seg", "shapes_panoptic_seg", "coco"]


# --- files on disk ---


def test_same_seed_gives_same_bytes_and_another_seed_other_pictures(small_set, tmp_path):
    first = bytes_of_files(small_set)
    second, other = (
        bytes_of_files(ensure_set(tmp_path / name, spec))
        for name, spec in (("b", SMALL), ("c", SMALL._replace(seed=12)))
    )
    assert first == second
    picture = "images/train/000002.jpg"
    assert first[picture] != other[picture]
    assert first[picture] != first["images/train/000001.jpg"]
    assert first["images/train/000001.jpg"] != first["images/val/000001.jpg"]


def test_the_first_pictures_of_a_larger_set_are_those_of_a_smaller_one(small_set, tmp_path):
    large = ensure_set(tmp_path, SMALL._replace(train=3, val=2))
    for picture in ("images/train/000001.jpg", "panoptic/val/000001.png"):
        assert (small_set / picture).read_bytes() == (large / picture).read_bytes()


def test_registration_writes_nothing_before_the_set_is_asked_for(tmp_path, root):
    register(tmp_path / "later", ShapesSpec(train=1, val=2, size=48))
    try:
        metadata = MetadataCatalog.get("shapes_panoptic_val")
        assert metadata.panoptic_json.startswith(str(tmp_path))
        assert not (tmp_path / "later").exists()
        assert len(DatasetCatalog.get("shapes_panoptic_val")) == 2
        assert Path(metadata.panoptic_json).is_file()
    finally:
        register(root, SPEC)


def test_root_is_the_environment_variable_with_home_expanded(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/somewhere")
    assert datasets_root() == Path.home() / "somewhere"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_root() == Path("datasets")


def write_when_both_are_ready(root, barrier, results):
    barrier.wait()
    results.put(str(ensure_set(root, SMALL)))


def test_two_processes_that_start_together_leave_one_whole_set(small_set, tmp_path):
    context = multiprocessing.get_context("fork")  # which imports nothing again
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (tmp_path, barrier, results)
    workers = [context.Process(target=write_when_both_are_ready, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    folders = {results.get(timeout=100) for _ in workers}
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert folders == {str(tmp_path / "shapes")}
    assert bytes_of_files(tmp_path / "shapes") == bytes_of_files(small_set)
    assert not list(tmp_path.glob(".shapes-*"))


def test_a_complete_set_is_not_written_again(copied_set, tmp_path):
    before = (copied_set / "shapes.json").stat().st_mtime_ns
    ensure_set(tmp_path, SMALL)
    ensure_set(tmp_path)
    assert (copied_set / "shapes.json").stat().st_mtime_ns == before


def test_other_numbers_or_a_newer_version_replace_the_set(copied_set, tmp_path, monkeypatch):
    ensure_set(tmp_path, SMALL._replace(val=2))
    assert len(list((copied_set / "images" / "val").iterdir())) == 2
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    ensure_set(tmp_path, SMALL)
    assert len(list((copied_set / "images" / "val").iterdir())) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shapes", "shapes.lock"]


def test_what_a_killed_process_left_is_removed_and_the_set_is_whole(tmp_path):
    (tmp_path / ".shapes-new-1234" / "images").mkdir(parents=True)
    folder = ensure_set(tmp_path, ShapesSpec(train=1, val=1, size=48))
    assert not (tmp_path / ".shapes-new-1234").exists()
    assert (folder / "shapes.json").is_file()


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not written by this program"):
        ensure_set(tmp_path)
    assert (tmp_path / "shapes" / "thesis.txt").read_text() == "precious"


def test_the_video_opens_with_its_frames_size_and_rate(root):
    capture = cv2.VideoCapture(str(root / "shapes" / "shapes_video.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(24)
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 72
    assert frames[0].shape == (192, 256, 3)
    moved = abs(frames[0].astype(int) - frames[-1]).max(axis=2) > 40
    assert 0.05 < moved.mean() < 0.8


def test_the_command_writes_the_set_and_a_sheet(tmp_path):
    sheet = tmp_path / "new folder" / "sheet.png"
    numbers = ["--train", "2", "--val", "3", "--size", "48", "--seed", "4"]
    main(["--out", str(tmp_path), *numbers, "--contact-sheet", str(sheet)])
    marker = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert marker == {"version": shapes.VERSION, "train": 2, "val": 3, "size": 48, "seed": 4}
    drawn = cv2.imread(str(sheet))
    # Two rows of two samples, the fourth place blank.
    assert (drawn[-100:, -100:] == 255).all()
    assert drawn[: drawn.shape[0] // 2].std() > 20


@pytest.mark.parametrize("wrong", [["--val", "0"], ["--size", "8"], ["--seed", "-1"]])
def test_the_command_refuses_impossible_numbers(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *wrong])
    assert "start at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
