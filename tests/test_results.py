"""Files and drawings of results, read back by other programs; a run that is cut short loses nothing."""

import csv
import io
import itertools
import json
import pickle
import resource
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import VisImage
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_predictors import CLASSES, COLORS, NAMES, decided_model, picture, small_config

from mask_former.engine.sample_pictures import draw_samples
from mask_former.evaluation.__main__ import main as evaluate
from mask_former.formats import id_to_rgb, read_panoptic_map
from mask_former.prediction.classes import classes_from_description
from mask_former.prediction.drawing import segment_colors
from mask_former.prediction.results import Result
from mask_former.prediction.values import InstanceResults, segments_of_map
from mask_former.prediction.writing import KINDS, ResultWriter

HEIGHT, WIDTH = 40, 56
DATASET_IDS = [11, 12, 90, 91, 95]
TABLE = classes_from_description(
    {"class_names": NAMES, "class_colors": COLORS, "thing_classes": [0, 1], "class_dataset_ids": DATASET_IDS},
    5,
)
# id, class, score of the segments in `panoptic_map`.
SEGMENTS = [(1, 2, 0.9), (2, 3, 0.8), (3, 0, 0.7), (5, 0, 0.6)]


def panoptic_map():
    """Sky above grass, and on them a ring (3) and a block (5); one pixel is void."""
    ids = np.full((HEIGHT, WIDTH), 1, np.int32)
    ids[25:] = 2
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(y - 18, x - 20)
    ids[(distance < 14) & (distance > 7)] = 3
    ids[4:12, 44:52] = 5
    ids[0, 0] = 0
    return ids


def result_of(name="folder/000007.jpg", ids=None, **changes):
    ids = panoptic_map() if ids is None else ids
    infos = [{"id": i, "category_id": c, "score": s} for i, c, s in SEGMENTS if (ids == i).any()]
    class_of = np.array([255, 2, 3, 0, 255, 0], np.uint8)
    fields = {
        "image": picture(HEIGHT, WIDTH),
        "semantic": class_of[ids],
        "panoptic": ids,
        "segments": segments_of_map(ids, infos, TABLE),
    }
    return Result(name, HEIGHT, WIDTH, TABLE, **{**fields, **changes})


def instances():
    masks = np.stack([panoptic_map() == 3, panoptic_map() == 5])
    return InstanceResults(
        masks=masks,
        boxes=np.array([[6, 4, 34, 32], [44, 4, 52, 12]], np.float32),
        classes=np.array([0, 1]),
        names=(NAMES[0], NAMES[1]),
        scores=np.array([0.75, 0.5], np.float32),
        areas=masks.sum((1, 2)),
    )


def test_label_file_holds_class_indices_and_their_colours(tmp_path):
    result_of().save(tmp_path, ["labels"])
    with Image.open(tmp_path / "labels" / "000007.png") as file:
        assert file.mode == "P"
        assert np.array_equal(np.asarray(file), result_of().semantic)
        assert file.getpalette()[3 * 2 : 3 * 3] == COLORS[2]


def test_more_than_255_classes_make_16_bit_labels(tmp_path):
    table = classes_from_description({}, 300)
    labels = np.array([[0, 299], [256, 65535]], np.uint16)
    assert table.void_label == 65535
    Result("many.jpg", 2, 2, table, semantic=labels).save(tmp_path, ["labels"])
    with Image.open(tmp_path / "labels" / "many.png") as file:
        assert file.mode.startswith("I")
        assert np.array_equal(np.asarray(file), labels)


@pytest.mark.parametrize(
    ("count", "ignore", "expected"), [(65, 65, 65), (255, 255, 255), (150, 65535, 255), (256, 255, 65535)]
)
def test_void_label_is_no_class_and_fits_the_file(count, ignore, expected):
    assert classes_from_description({"ignore_value": ignore}, count).void_label == expected


def test_labels_come_from_segments_where_there_is_no_semantic_map(tmp_path):
    assert np.array_equal(result_of(semantic=None).labels(), result_of().semantic)


def test_panoptic_files_score_100_against_a_truth_of_the_same(tmp_path, capsys):
    truth = tmp_path / "truth"
    truth.mkdir()
    annotations = []
    names = ["000007", "000012"]
    for name in names:
        Image.fromarray(id_to_rgb(panoptic_map())).save(truth / f"{name}.png")
        infos = [
            {"id": i, "category_id": DATASET_IDS[c], "area": int((panoptic_map() == i).sum())}
            for i, c, _ in SEGMENTS
        ]
        annotations.append({"image_id": int(name), "file_name": f"{name}.png", "segments_info": infos})
    categories = [
        {"id": i, "name": n, "isthing": int(i < 20)} for i, n in zip(DATASET_IDS, NAMES, strict=True)
    ]
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": annotations, "categories": categories}))
    with ResultWriter(tmp_path / "out", ["panoptic"], TABLE) as writer:
        for name in names:
            writer.write(result_of(f"{name}.jpg"))
    scores = tmp_path / "scores.json"
    arguments = [
        "--pred",
        tmp_path / "out" / "panoptic.json",
        "--gt",
        tmp_path / "truth.json",
        "--json",
        scores,
    ]
    assert evaluate([str(argument) for argument in arguments]) == 0
    assert json.loads(scores.read_text())["panoptic_seg"]["PQ"] == pytest.approx(100)


def test_coco_results_are_accepted_by_pycocotools(tmp_path, capsys):
    truth = {
        "images": [{"id": 7, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": i, "name": n} for i, n in zip(DATASET_IDS, NAMES, strict=True)],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    result_of(instances=instances()).save(tmp_path, ["coco"])
    loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "coco_instances_results.json"))
    found = sorted(loaded.anns.values(), key=lambda annotation: -annotation["score"])
    assert [annotation["category_id"] for annotation in found] == [11, 12]
    assert found[0]["bbox"] == [6, 4, 28, 28]
    assert np.array_equal(coco_mask.decode(found[0]["segmentation"]), panoptic_map() == 3)


def test_coco_results_without_instances_are_the_things(tmp_path):
    result_of().save(tmp_path, ["coco"])
    found = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(entry["category_id"], entry["score"]) for entry in found] == [(11, 0.7), (11, 0.6)]


def test_table_has_a_row_for_each_segment(tmp_path):
    result_of().save(tmp_path, ["csv"])
    with (tmp_path / "segments.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["sky", "grass", "circle", "circle"]
    block = rows[3]
    assert (block["image"], block["task"], block["segment_id"]) == ("folder/000007.jpg", "panoptic", "5")
    assert (block["category_id"], block["is_thing"], block["area"]) == ("11", "1", "64")
    assert [float(block[edge]) for edge in ("x0", "y0", "x1", "y1")] == [44, 4, 52, 12]


def test_table_of_a_semantic_result_has_a_row_for_each_class(tmp_path):
    result_of(panoptic=None, segments=[]).save(tmp_path, ["csv"])
    with (tmp_path / "segments.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"sky", "grass", "circle"}
    assert int(rows["circle"]["area"]) == np.isin(panoptic_map(), (3, 5)).sum()


def test_all_kinds_are_written_whole(tmp_path):
    result_of(instances=instances()).save(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        *("coco_instances_results.json", "labels/000007.png", "overlay/000007.jpg"),
        *("panoptic/000007.png", "panoptic.json", "segments.csv"),
    }
    with Image.open(tmp_path / "overlay" / "000007.jpg") as file:
        assert file.size == (WIDTH, HEIGHT)


def test_kinds_that_results_cannot_give_are_left_out_with_one_warning(tmp_path, caplog):
    plain = result_of(panoptic=None, segments=[])
    with ResultWriter(tmp_path, KINDS, TABLE) as writer:
        writer.write(plain)
        writer.write(plain)
    assert [record.message.split()[1] for record in caplog.records] == ["panoptic", "coco"]
    assert (tmp_path / "labels" / "000007.png").exists()


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'masks'; choose of overlay, labels"):
        result_of().save(tmp_path, ["masks"])


def test_pictures_of_one_name_in_two_folders_get_files_of_their_own(tmp_path):
    other = np.where(panoptic_map() == 5, 1, panoptic_map())
    with ResultWriter(tmp_path, ["panoptic"], TABLE) as writer:
        writer.write(result_of("one/7.jpg"))
        writer.write(result_of("two/7.jpg", other))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in content["annotations"]] == ["7.png", "7_2.png"]
    assert len({entry["image_id"] for entry in content["annotations"]}) == 2
    assert np.array_equal(read_panoptic_map(tmp_path / "panoptic" / "7_2.png"), other)


def test_pictures_whose_names_are_one_number_have_ids_of_their_own(tmp_path):
    with ResultWriter(tmp_path, ["panoptic"], TABLE) as writer:
        for name in ("1.jpg", "001.jpg"):
            writer.write(result_of(name))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [1, "001"]


def test_image_ids_can_be_given(tmp_path):
    with ResultWriter(tmp_path, ["coco"], TABLE, image_ids={"000007.jpg": 391}) as writer:
        writer.write(result_of())
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["image_id"] == 391


def test_run_that_was_killed_is_taken_over(tmp_path):
    killed = ResultWriter(tmp_path, ["panoptic", "coco", "csv"], TABLE)
    killed.write(result_of("1.jpg"))
    killed.write(result_of("2.jpg"))
    with (tmp_path / ".panoptic.json.journal").open("a") as file:
        file.write('[3, [{"annotation": {"image_')  # the line that was being written
    assert not (tmp_path / "panoptic.json").exists()
    with ResultWriter(tmp_path, ["panoptic", "coco", "csv"], TABLE) as writer:
        writer.write(result_of("4.jpg"))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [1, 2, 4]
    assert [entry["id"] for entry in content["images"]] == [1, 2, 4]
    coco = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {entry["image_id"] for entry in coco} == {1, 2, 4}
    assert len((tmp_path / "segments.csv").read_text().splitlines()) == 1 + 3 * len(SEGMENTS)
    assert not list(tmp_path.glob(".*"))


def test_second_run_adds_to_the_first_and_replaces_what_it_repeats(tmp_path):
    result_of("1.jpg").save(tmp_path, ["panoptic", "coco", "csv"])
    result_of("2.jpg").save(tmp_path, ["panoptic", "coco", "csv"])
    without_block = np.where(panoptic_map() == 5, 1, panoptic_map())
    result_of("1.jpg", without_block).save(tmp_path, ["panoptic", "coco", "csv"])
    content = json.loads((tmp_path / "panoptic.json").read_text())
    counts = {entry["image_id"]: len(entry["segments_info"]) for entry in content["annotations"]}
    assert counts == {1: 3, 2: 4}
    coco = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert sorted(entry["image_id"] for entry in coco) == [1, 2, 2]
    with (tmp_path / "segments.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)].count("1.jpg") == 3


def test_results_of_other_classes_are_not_mixed_in(tmp_path):
    result_of().save(tmp_path, ["panoptic"])
    before = (tmp_path / "panoptic.json").read_bytes()
    with pytest.raises(ValueError, match=r"panoptic\.json.*classes.*another folder"):
        ResultWriter(tmp_path, ["panoptic"], classes_from_description({}, 5))
    assert (tmp_path / "panoptic.json").read_bytes() == before


def test_error_in_between_leaves_complete_files(tmp_path):
    def stop():
        with ResultWriter(tmp_path, ["panoptic"], TABLE) as writer:
            writer.write(result_of("1.jpg"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["annotations"]) == 1


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("something")
    with pytest.raises(ValueError, match="taken is a file"):
        result_of().save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "something"


def test_file_that_cannot_be_written_is_named_and_the_others_stay(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ResultWriter(tmp_path, ["labels", "panoptic"], TABLE)
    writer.write(result_of("1.jpg"))
    noise = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH), np.uint8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write.*2\.png"):
            writer.write(result_of("2.jpg", semantic=noise))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not list(tmp_path.rglob("*.partial"))
    writer.close()
    assert [e["image_id"] for e in json.loads((tmp_path / "panoptic.json").read_text())["annotations"]] == [1]


def test_picture_file_holds_the_drawing_and_never_replaces_the_picture_itself(tmp_path):
    one = result_of()
    one.save(tmp_path / "new" / "one.png", scale=2)
    with Image.open(tmp_path / "new" / "one.png") as file:
        assert np.array_equal(np.asarray(file), one.draw(scale=2))
    one.save(tmp_path / "one.JPG")
    with Image.open(tmp_path / "one.JPG") as file:
        assert file.format == "JPEG"
    with pytest.raises(ValueError, match=r"one\.JPG is the picture itself"):
        result_of(str(tmp_path / "one.JPG")).save(tmp_path / "one.JPG")


# Task -> a result and what iteration gives of it: id, class and score of each segment.
LISTED = {
    "panoptic": (lambda: result_of(instances=instances()), SEGMENTS),
    "instance": (
        lambda: result_of(panoptic=None, segments=[], instances=instances()),
        [(1, 0, 0.75), (2, 1, 0.5)],
    ),
    "semantic": (
        lambda: result_of(panoptic=None, segments=[]),
        [(0, 0, None), (2, 2, None), (3, 3, None)],
    ),
}


@pytest.mark.parametrize("task", LISTED)
def test_iteration_dictionary_and_masks_list_the_same_segments(task):
    make, expected = LISTED[task]
    result = make()
    content = json.loads(result.to_json())
    assert (content["task"], content["height"], content["width"]) == (task, HEIGHT, WIDTH)
    assert [(s["id"], s["category_id"], s["score"]) for s in content["segments"]] == expected
    assert len(result) == len(expected) == len(result.masks())
    for segment, entry, mask in zip(result, content["segments"], result.masks(), strict=True):
        ys, xs = np.nonzero(mask)
        if task != "instance":  # whose boxes above are made by hand
            assert segment.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert tuple(entry["box"]) == segment.box
        assert segment.area == mask.sum() == entry["area"]
        assert (segment.name, segment.is_thing) == (NAMES[segment.category_id], segment.category_id < 2)


def test_result_without_segments_is_an_empty_list():
    empty = result_of(ids=np.zeros((HEIGHT, WIDTH), np.int32))
    assert list(empty) == empty.to_dict()["segments"] == []
    assert empty.masks().shape == (0, HEIGHT, WIDTH)


def test_result_is_shown_in_one_line_and_as_a_picture_in_notebooks():
    expected = "<Result of folder/000007.jpg, 56x40, panoptic: 2 circle, sky, grass>"
    assert repr(result_of()) == expected
    with Image.open(io.BytesIO(result_of()._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), result_of().plot())
    assert result_of(image=None)._repr_png_() is None


def test_missing_supervision_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"^supervision is not installed: pip install supervision$"):
        result_of().to_supervision()


def test_supervision_gets_masks_boxes_and_names():
    pytest.importorskip("supervision")
    detections = result_of(instances=instances()).to_supervision()
    assert len(detections) == len(SEGMENTS)
    assert detections.class_id.tolist() == [c for _, c, _ in SEGMENTS]
    assert detections["class_name"].tolist() == ["sky", "grass", "circle", "circle"]
    assert np.array_equal(detections.mask[2], panoptic_map() == 3)
    assert detections.xyxy[3].tolist() == [44, 4, 52, 12]


def test_wrong_drawing_option_is_answered_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"draw has no option 'colour'; did you mean 'colors'\?"):
        result_of().plot(colour={})


def test_hole_of_a_ring_is_not_painted():
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    ids = np.where(panoptic_map() == 3, 3, 0).astype(np.int32)
    drawn = result_of(ids=ids).draw(image, text=False)
    assert np.array_equal(drawn[18, 20], (128, 128, 128)), "centre of the ring"
    red, green, blue = drawn[18, 9].astype(int)
    assert red > green + 30, "on the ring, which is red"
    assert red > blue + 30
    assert np.array_equal(drawn[38, 50], (128, 128, 128))


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_every_task_can_be_drawn(task):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawn = result_of(instances=instances()).draw(image, task=task, text=False)
    red, green, blue = drawn[18, 9].astype(int)
    assert red > max(green, blue) + 30, "the ring, of class circle, is red"


def test_drawing_has_the_size_of_the_result_times_scale():
    assert result_of().draw(picture(200, 300)).shape == (HEIGHT, WIDTH, 3)
    assert result_of().draw(scale=3).shape == (3 * HEIGHT, 3 * WIDTH, 3)


def test_drawing_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"holds panoptic, semantic, not 'instance'"):
        result_of().draw(task="instance")
    with pytest.raises(ValueError, match="no picture"):
        result_of(image=None).draw()


def test_names_stay_apart_and_inside_the_picture(monkeypatch):
    boxes = []
    get_image = VisImage.get_image

    def note(canvas):
        boxes.extend(text.get_window_extent() for text in canvas.ax.texts)
        return get_image(canvas)

    monkeypatch.setattr(VisImage, "get_image", note)
    ids = np.zeros((60, 200), np.int32)
    for number in range(6):  # six discs side by side, narrower than their names
        ids[20:40, 80 + 8 * number : 86 + 8 * number] = number + 1
    infos = [{"id": number + 1, "category_id": 0, "score": 0.5} for number in range(6)]
    crowded = Result("a.png", 60, 200, TABLE, panoptic=ids, segments=segments_of_map(ids, infos, TABLE))
    crowded.draw(np.zeros((60, 200, 3), np.uint8), scale=2)
    assert len(boxes) >= 5, "hardly any name is left"
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(0 <= box.x0 <= box.x1 <= 400 and 0 <= box.y0 <= box.y1 <= 120 for box in boxes)


def test_things_of_a_class_differ_in_colour_and_keep_it():
    colors = segment_colors(result_of())
    assert colors[1] == tuple(COLORS[2]), "stuff has the colour of its class"
    assert len({colors[3], colors[5]}) == 2
    assert colors == segment_colors(result_of("another.jpg"))


@pytest.fixture
def panoptic_set(tmp_path):
    """A registered data set of two pictures; ids in its files are large."""
    ids = panoptic_map()
    records = []
    for number in range(2):
        name = tmp_path / f"{number}.png"
        label = tmp_path / f"{number}_label.png"
        Image.fromarray(picture(HEIGHT, WIDTH, number)).save(name)
        Image.fromarray(id_to_rgb(ids * 1_000_003)).save(label)
        infos = [{"id": i * 1_000_003, "category_id": c, "isthing": c < 2} for i, c, _ in SEGMENTS]
        records.append({"file_name": str(name), "pan_seg_file_name": str(label), "segments_info": infos})
    DatasetCatalog.register("two_pictures", lambda: records)
    MetadataCatalog.get("two_pictures").set(**vars(CLASSES))
    yield "two_pictures"
    DatasetCatalog.remove("two_pictures")
    MetadataCatalog.remove("two_pictures")


def test_samples_show_pictures_beside_truth_and_prediction(tmp_path, panoptic_set):
    cfg = small_config()
    model = decided_model(cfg).train()
    file = tmp_path / "samples" / "iter_0000010.png"
    draw_samples(model, cfg, panoptic_set, 5, file)
    assert model.training
    with Image.open(file) as sheet:
        pixels = np.asarray(sheet)
    # Three columns of 320 pixels with 4 between; 16 above, two rows of 320 * 40 / 56.
    assert pixels.shape == (16 + 2 * 229 + 4, 3 * 320 + 8, 3)
    block = pixels[16 + int(6.5 / HEIGHT * 229), 324 + int(45.5 / WIDTH * 320)].astype(int)
    assert block[0] > max(block[1], block[2]), "the block of the truth is red, as circles are"


def test_result_survives_the_way_between_processes():

    result = pickle.loads(pickle.dumps(result_of(instances=instances(), scores=torch.rand(2, 3))))
    assert result.segments == result_of().segments
