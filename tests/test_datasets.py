"""Class tables, registration of the published data sets, and data sets of one's own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from PIL import Image

from mask_former.data import datasets, own_data
from mask_former.data.coco import panoptic_metadata
from mask_former.formats import CLASS_TABLES, distinct_colors, load_classes

ADE20K_STUFF = (
    "0 1 2 3 4 5 6 9 11 13 16 17 21 25 26 28 29 34 40 46 48 51 52 54 59 60 61 63 68 77 79 84 91 94 96 99 100 "
    "101 105 106 109 113 114 117 122 128 131 140 141 145"
)


@pytest.fixture
def root(tmp_path):
    """Every published set registered under a fresh folder, and put back afterwards."""
    datasets.register_all(tmp_path)
    yield tmp_path
    datasets.register_all()


@pytest.fixture
def fresh_name(request):
    """A name for a data set of one's own, free again after the test."""
    name = request.node.name
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def blank(path: Path, channels: int = 3) -> None:
    write_image(path, np.zeros((5, 7, 3) if channels == 3 else (5, 7)))


# Class tables


@pytest.mark.parametrize(
    ("table", "count"),
    [("ade20k_150", 150), ("ade20k_full_847", 847), ("coco_stuff_171", 171), ("mapillary_vistas_66", 66)],
)
def test_class_table_has_its_published_size_and_no_name_twice(table, count):
    names = [entry["name"] for entry in load_classes(table)]
    assert len(names) == len(set(names)) == count
    assert all(name == name.strip() != "" for name in names)


@pytest.mark.parametrize("table", ["ade20k_150", "mapillary_vistas_66"])
def test_class_colors_are_rgb_and_unique(table):
    colors = [tuple(entry["color"]) for entry in load_classes(table)]
    assert len(set(colors)) == len(colors)
    assert all(len(color) == 3 and min(color) >= 0 and max(color) <= 255 for color in colors)


@pytest.mark.parametrize("table", ["ade20k_150", "coco_stuff_171", "mapillary_vistas_66"])
def test_class_tables_have_one_entry_a_line(table):
    lines = (CLASS_TABLES / f"{table}.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == load_classes(table)


def test_ade20k_has_the_published_stuff_classes_and_100_things():
    classes = load_classes("ade20k_150")
    assert [entry["id"] for entry in classes] == list(range(150))
    assert [entry["id"] for entry in classes if not entry["isthing"]] == [
        int(i) for i in ADE20K_STUFF.split()
    ]
    assert sum(entry["isthing"] for entry in classes) == 100


def test_ade20k_names_are_those_of_detectron2():
    names = [entry["name"] for entry in load_classes("ade20k_150")]
    assert names == [name.strip() for name in builtin_meta.ADE20K_SEM_SEG_CATEGORIES]


def test_ade20k_full_train_ids_count_up_and_known_ids_are_in_the_published_range():
    classes = load_classes("ade20k_full_847")
    assert [entry["trainId"] for entry in classes] == list(range(847))
    ids = [entry["id"] for entry in classes if "id" in entry]
    assert len(ids) == len(set(ids)) == 145
    assert min(ids) >= 6
    assert max(ids) <= 3156


def test_ade20k_full_known_ids_follow_the_alphabet_as_the_data_set_does():
    known = sorted((entry["id"], entry["name"]) for entry in load_classes("ade20k_full_847") if "id" in entry)
    names = [re.findall(r"\w+", name) for _, name in known]
    assert names == sorted(names)


def test_coco_stuff_is_the_80_coco_things_and_91_stuff_classes_from_id_92():
    classes = load_classes("coco_stuff_171")
    things = [(e["id"], e["name"]) for e in builtin_meta.COCO_CATEGORIES if e["isthing"]]
    assert [(e["id"], e["name"]) for e in classes if e["isthing"]] == things
    assert [e["id"] for e in classes if not e["isthing"]] == list(range(92, 183))
    assert [e["isthing"] for e in classes] == [1] * 80 + [0] * 91


def test_mapillary_ends_with_unlabeled_and_has_37_classes_with_instances():
    classes = load_classes("mapillary_vistas_66")
    assert classes[65]["name"] == "Unlabeled"
    assert sum(entry["isthing"] for entry in classes) == 37


def test_unknown_class_table_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="ade20k_150"):
        load_classes("ade20k_151")


def test_distinct_colors_are_distinct_and_repeatable():
    colors = distinct_colors(300)
    assert len({tuple(color) for color in colors}) == 300
    assert colors[:20] == distinct_colors(20)


# Registration

EXPECTED = {
    # name: evaluator_type, ignore_label, classes, stuff classes have colours
    "ade20k_sem_seg_train": ("sem_seg", 255, 150, True),
    "ade20k_sem_seg_val": ("sem_seg", 255, 150, True),
    "ade20k_panoptic_train": ("ade20k_panoptic_seg", 255, 150, True),
    "ade20k_panoptic_val": ("ade20k_panoptic_seg", 255, 150, True),
    "ade20k_full_sem_seg_train": ("sem_seg", 65535, 847, False),
    "ade20k_full_sem_seg_val": ("sem_seg", 65535, 847, False),
    "coco_2017_train_stuff_10k_sem_seg": ("sem_seg", 255, 171, False),
    "coco_2017_test_stuff_10k_sem_seg": ("sem_seg", 255, 171, False),
    "mapillary_vistas_sem_seg_train": ("sem_seg", 65, 65, True),
    "mapillary_vistas_sem_seg_val": ("sem_seg", 65, 65, True),
    "cityscapes_fine_sem_seg_train": ("cityscapes_sem_seg", 255, 19, True),
    "cityscapes_fine_sem_seg_val": ("cityscapes_sem_seg", 255, 19, True),
    "cityscapes_fine_sem_seg_test": ("cityscapes_sem_seg", 255, 19, True),
    "cityscapes_fine_panoptic_train": ("cityscapes_panoptic_seg", 255, 19, True),
    "cityscapes_fine_panoptic_val": ("cityscapes_panoptic_seg", 255, 19, True),
    "coco_2017_train_panoptic": ("coco_panoptic_seg", 255, 133, True),
    "coco_2017_val_panoptic": ("coco_panoptic_seg", 255, 133, True),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_published_name_has_its_metadata(name):
    evaluator, ignore_label, count, has_colors = EXPECTED[name]
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog
    assert metadata.evaluator_type == evaluator
    assert metadata.ignore_label == ignore_label
    assert len(metadata.stuff_classes) == count
    assert ("stuff_colors" in metadata.as_dict()) == has_colors
    assert len(metadata.get("stuff_colors", metadata.stuff_classes)) == count


def test_ade20k_panoptic_has_a_thing_map_of_100_and_a_stuff_map_of_all_150():
    metadata = MetadataCatalog.get("ade20k_panoptic_val")
    stuff = {int(i) for i in ADE20K_STUFF.split()}
    assert metadata.thing_dataset_id_to_contiguous_id == {i: i for i in range(150) if i not in stuff}
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(150)}
    assert metadata.label_divisor == 1000
    assert metadata.json_file is None


def test_coco_stuff_maps_its_182_ids_to_171_classes():
    id_map = MetadataCatalog.get("coco_2017_test_stuff_10k_sem_seg").stuff_dataset_id_to_contiguous_id
    assert (id_map[1], id_map[90], id_map[92], id_map[182]) == (0, 79, 80, 170)
    assert sorted(id_map.values()) == list(range(171))


def test_panoptic_metadata_equal_detectron2s_for_coco():
    ours, theirs = (
        panoptic_metadata(builtin_meta.COCO_CATEGORIES),
        dict(builtin_meta._get_builtin_metadata("coco_panoptic_standard")),
    )
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("name", [s.name.format(split=split) for s in datasets.SOURCES for split in s.splits])
def test_missing_data_set_is_reported_by_path_and_remedy(name, root):
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(name)
    message = str(error.value)
    assert str(root) in message
    assert name in message
    assert "datasets/README.md" in message
    prepared = {"ade20k_sem": "prepare_ade20k_sem_seg", "ade20k_pan": "prepare_ade20k_pan_seg"} | {
        "ade20k_full": "prepare_ade20k_full_sem_seg",
        "stuff_10k": "prepare_coco_stuff_10k_v1.0_sem_seg",
    }
    for part, program in prepared.items():
        if part in name:
            assert f"python datasets/{program}.py" in message
            assert (Path(__file__).parents[1] / "datasets" / f"{program}.py").is_file()


def test_registration_before_detectron2s_own_import_gives_the_same_and_expands_the_home_folder(tmp_path):
    # The rest of this file imports Detectron2's catalogs first.
    program = (
        "import mask_former.data\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "for name in ('ade20k_sem_seg_val', 'coco_2017_val_panoptic', 'mapillary_vistas_sem_seg_val'):\n"
        "    print(MetadataCatalog.get(name).image_root)\n"
    )
    environment = {"DETECTRON2_DATASETS": "~/sets", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    home = f"{tmp_path}/sets"
    assert run.stdout.split() == [
        f"{home}/ADEChallengeData2016/images/validation",
        f"{home}/coco/val2017",
        f"{home}/mapillary_vistas/validation/images",
    ]


def test_a_name_that_the_user_registered_stays_the_users(tmp_path):
    program = f"""
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

entries = [{{"file_name": "mine.jpg"}}]
for name in ("shapes_panoptic_train", "ade20k_sem_seg_train", "mapillary_vistas_sem_seg_val"):
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).set(stuff_classes=["mine"])
for catalog in (DatasetCatalog, MetadataCatalog):
    catalog.remove("coco_2017_train")
register_coco_instances("coco_2017_train", {{}}, "{tmp_path}/mine.json", "{tmp_path}")

import mask_former.data

for name in ("shapes_panoptic_train", "ade20k_sem_seg_train", "mapillary_vistas_sem_seg_val"):
    assert DatasetCatalog.get(name) == entries, name
    assert MetadataCatalog.get(name).stuff_classes == ["mine"], name
assert MetadataCatalog.get("coco_2017_train").json_file == "{tmp_path}/mine.json"
assert MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id[90] == 79
mask_former.data.datasets.register_all("{tmp_path}")
assert DatasetCatalog.get("ade20k_sem_seg_train") == entries
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_registering_again_moves_the_data_sets_but_keeps_metadata_objects(root, tmp_path):
    before = MetadataCatalog.get("ade20k_sem_seg_val")
    datasets.register_all(tmp_path / "elsewhere")
    assert MetadataCatalog.get("ade20k_sem_seg_val") is before
    assert before.image_root == str(tmp_path / "elsewhere/ADEChallengeData2016/images/validation")


def test_ade20k_panoptic_loads_string_image_ids_and_semantic_labels(root):
    data, stem = root / "ADEChallengeData2016", "ADE_val_00000001"
    blank(data / f"images/validation/{stem}.jpg")
    blank(data / f"annotations_detectron2/validation/{stem}.png", channels=1)
    blank(data / f"ade20k_panoptic_val/{stem}.png")
    segments = [{"id": 9, "category_id": 12, "area": 4}, {"id": 5, "category_id": 2, "area": 6}]
    annotation = {"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments}
    image = {"id": stem, "file_name": f"{stem}.jpg", "height": 5, "width": 7}
    (data / "ade20k_panoptic_val.json").write_text(
        json.dumps({"images": [image], "annotations": [annotation]})
    )

    (sample,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert sample == {
        "file_name": str(data / f"images/validation/{stem}.jpg"),
        "image_id": stem,
        "height": 5,
        "width": 7,
        "pan_seg_file_name": str(data / f"ade20k_panoptic_val/{stem}.png"),
        "sem_seg_file_name": str(data / f"annotations_detectron2/validation/{stem}.png"),
        "segments_info": [
            {"id": 9, "category_id": 12, "area": 4, "isthing": True},
            {"id": 5, "category_id": 2, "area": 6, "isthing": False},
        ],
    }


def coco_panoptic_tree(folder: Path, **changes) -> tuple[Path, Path, Path]:
    """Two pictures in COCO's panoptic layout; `changes` replace parts of the JSON."""
    stems = {139: "000000000139", 285: "000000000285"}
    annotations = []
    for image_id, stem in stems.items():
        blank(folder / f"val2017/{stem}.jpg")
        blank(folder / f"panoptic_val2017/{stem}.png")
        segments = [
            {"id": 7, "category_id": 17, "iscrowd": 0, "area": 3, "bbox": [0, 0, 3, 1]},
            {"id": 8, "category_id": 200, "iscrowd": 0, "area": 2, "bbox": [0, 1, 2, 1]},
        ]
        annotations.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
    content = {
        "images": [
            {"id": i, "file_name": f"{stem}.jpg", "height": 5, "width": 7} for i, stem in stems.items()
        ],
        "annotations": annotations,
        "categories": [
            {"id": 200, "name": "rug", "isthing": 0, "color": [1, 2, 3]},
            {"id": 17, "name": "cat", "isthing": 1},
        ],
    } | changes
    path = folder / "annotations/panoptic_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return folder / "val2017", folder / "panoptic_val2017", path


def test_coco_panoptic_loads_as_detectron2_loads_it_with_sizes(root):
    image_dir, panoptic_dir, path = coco_panoptic_tree(root / "coco")
    metadata = builtin_meta._get_builtin_metadata("coco_panoptic_standard")
    expected = load_coco_panoptic_json(str(path), str(image_dir), str(panoptic_dir), metadata)
    assert DatasetCatalog.get("coco_2017_val_panoptic") == [
        {**sample, "height": 5, "width": 7} for sample in expected
    ]


def test_semantic_set_pairs_pictures_with_label_maps(root):
    data = root / "mapillary_vistas/validation"
    for stem in ("b", "a"):
        blank(data / f"images/{stem}.jpg")
        blank(data / f"labels/{stem}.png", channels=1)
    samples = DatasetCatalog.get("mapillary_vistas_sem_seg_val")
    assert samples == [
        {"file_name": str(data / f"images/{s}.jpg"), "sem_seg_file_name": str(data / f"labels/{s}.png")}
        for s in ("a", "b")
    ]


def test_cityscapes_without_train_id_labels_names_the_tool_to_run(root):
    data = root / "cityscapes"
    blank(data / "leftImg8bit/val/bonn/bonn_000000_000001_leftImg8bit.png")
    (data / "gtFine/val/bonn").mkdir(parents=True)
    for kind in ("instanceIds.png", "labelIds.png"):
        blank(data / f"gtFine/val/bonn/bonn_000000_000001_gtFine_{kind}", channels=1)
    polygons = data / "gtFine/val/bonn/bonn_000000_000001_gtFine_polygons.json"
    polygons.write_text(json.dumps({"imgHeight": 5, "imgWidth": 7, "objects": []}))
    with pytest.raises(FileNotFoundError, match="csCreateTrainIdLabelImgs"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")


def test_cityscapes_panoptic_segments_have_train_ids_and_say_what_is_a_thing(root):
    data, stem = root / "cityscapes", "bonn_000000_000001"
    blank(data / f"leftImg8bit/val/bonn/{stem}_leftImg8bit.png")
    blank(data / f"gtFine/val/bonn/{stem}_gtFine_labelTrainIds.png", channels=1)
    blank(data / f"gtFine/cityscapes_panoptic_val/{stem}_gtFine_panoptic.png")
    segments = [{"id": 26000, "category_id": 26}, {"id": 7, "category_id": 7}]  # a car, the road
    annotation = {"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments}
    (data / "gtFine/cityscapes_panoptic_val.json").write_text(json.dumps({"annotations": [annotation]}))
    (sample,) = DatasetCatalog.get("cityscapes_fine_panoptic_val")
    assert [(s["category_id"], s["isthing"]) for s in sample["segments_info"]] == [(13, True), (0, False)]
    assert sample["sem_seg_file_name"].endswith(f"{stem}_gtFine_labelTrainIds.png")


# Data sets of one's own


def test_own_semantic_set_takes_a_folder_tree_and_class_names(fresh_name, tmp_path):
    for stem, extension in (("north/one", "jpg"), ("two", "png")):
        blank(tmp_path / f"images/{stem}.{extension}")
        blank(tmp_path / f"labels/{stem}.png", channels=1)
    metadata = own_data.register_semantic(
        fresh_name, tmp_path / "images", tmp_path / "labels", ["roof", "other"]
    )
    assert metadata.stuff_classes == ["roof", "other"]
    assert (metadata.evaluator_type, metadata.ignore_label, len(metadata.stuff_colors)) == ("sem_seg", 255, 2)
    samples = DatasetCatalog.get(fresh_name)
    assert [s["file_name"].removeprefix(str(tmp_path)) for s in samples] == [
        "/images/north/one.jpg",
        "/images/two.png",
    ]
    assert samples[0]["sem_seg_file_name"] == str(tmp_path / "labels/north/one.png")


def test_own_semantic_set_takes_a_class_table_and_no_labels(fresh_name, tmp_path):
    blank(tmp_path / "images/one.jpg")
    table = tmp_path / "mine.json"
    table.write_text('[{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [4, 5, 6]}]')
    metadata = own_data.register_semantic(fresh_name, tmp_path / "images", None, table)
    assert (metadata.stuff_classes, metadata.stuff_colors) == (["a", "b"], [[1, 2, 3], [4, 5, 6]])
    assert DatasetCatalog.get(fresh_name) == [{"file_name": str(tmp_path / "images/one.jpg")}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": ["a", "a"]}, "two classes 'a'"),
        ({"classes": []}, "no class"),
        ({"classes": ["a", "b"], "ignore_label": 1}, "also the id of class 'b'"),
        ({"classes": ["a"], "colors": [[0, 0, 0]] * 2}, "2 colors for 1 classes"),
        ({"classes": ["a"], "label_dir": "nowhere"}, "no folder nowhere"),
    ],
)
def test_own_semantic_set_with_a_mistake_is_refused_and_not_registered(
    fresh_name, tmp_path, arguments, words
):
    blank(tmp_path / "one.jpg")
    call = {"name": fresh_name, "image_dir": tmp_path, "label_dir": tmp_path, **arguments}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        own_data.register_semantic(**call)
    assert fresh_name not in DatasetCatalog


def test_own_picture_without_label_map_is_named(fresh_name, tmp_path):
    blank(tmp_path / "images/one.jpg")
    blank(tmp_path / "images/two.jpg")
    blank(tmp_path / "labels/one.png", channels=1)
    own_data.register_semantic(fresh_name, tmp_path / "images", tmp_path / "labels", ["a"])
    with pytest.raises(ValueError, match=r"1 of 2 pictures .*two\.jpg"):
        DatasetCatalog.get(fresh_name)


def test_own_name_can_not_be_taken_twice(fresh_name, tmp_path):
    own_data.register_semantic(fresh_name, tmp_path, None, ["a"])
    with pytest.raises(ValueError, match="registered already"):
        own_data.register_semantic(fresh_name, tmp_path, None, ["a"])


def test_own_panoptic_set_takes_everything_from_the_json(fresh_name, tmp_path):
    metadata = own_data.register_coco_panoptic(fresh_name, *coco_panoptic_tree(tmp_path))
    assert metadata.stuff_classes == metadata.thing_classes == ["cat", "rug"]
    assert metadata.thing_dataset_id_to_contiguous_id == {17: 0}
    assert metadata.stuff_dataset_id_to_contiguous_id == {200: 1}
    assert metadata.stuff_colors[1] == [1, 2, 3]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    segments = DatasetCatalog.get(fresh_name)[1]["segments_info"]
    assert [(s["category_id"], s["isthing"]) for s in segments] == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": [{"id": 1, "name": "cat"}]}, "lacks 'isthing'"),
        ({"categories": [{"id": 1, "name": n, "isthing": 1} for n in "ab"]}, "id 1 more than once"),
        ({"categories": [{"id": i, "name": "a", "isthing": 1} for i in (1, 2)]}, "two classes 'a'"),
        ({"images": [{"id": 5}, {"id": 5}]}, "images has id 5 more than once"),
        ({"annotations": []}, "'annotations' is empty"),
    ],
)
def test_own_panoptic_json_with_a_mistake_is_refused_by_file(fresh_name, tmp_path, changes, words):
    image_dir, panoptic_dir, path = coco_panoptic_tree(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        own_data.register_coco_panoptic(fresh_name, image_dir, panoptic_dir, path)
    assert str(path) in str(error.value) or fresh_name in str(error.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (
            {"image_id": 139, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 4}]},
            "category id 4",
        ),
        ({"image_id": 139, "file_name": "a.png"}, "lacks 'segments_info'"),
    ],
)
def test_own_panoptic_annotation_with_a_mistake_is_named(fresh_name, tmp_path, annotation, words):
    own_data.register_coco_panoptic(fresh_name, *coco_panoptic_tree(tmp_path, annotations=[annotation]))
    with pytest.raises(ValueError, match=words):
        DatasetCatalog.get(fresh_name)


def test_own_panoptic_image_id_with_two_annotations_is_refused(fresh_name, tmp_path):
    annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": []}
    own_data.register_coco_panoptic(fresh_name, *coco_panoptic_tree(tmp_path, annotations=[annotation] * 2))
    with pytest.raises(ValueError, match="image id 139 has two annotations"):
        DatasetCatalog.get(fresh_name)


def test_json_cut_short_is_named(fresh_name, tmp_path):
    image_dir, panoptic_dir, path = coco_panoptic_tree(tmp_path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="cut short") as error:
        own_data.register_coco_panoptic(fresh_name, image_dir, panoptic_dir, path)
    assert str(path) in str(error.value)


def test_own_instance_set_takes_everything_from_the_json(fresh_name, tmp_path):
    blank(tmp_path / "images/one.png")
    square = [0, 0, 3, 0, 3, 3, 0, 3]
    annotation = {
        "id": 1, "image_id": 4, "category_id": 30, "iscrowd": 0,
        "area": 9, "bbox": [0, 0, 3, 3], "segmentation": [square],
    }  # fmt: skip
    content = {
        "images": [{"id": 4, "file_name": "one.png", "height": 5, "width": 7}],
        "annotations": [annotation],
        "categories": [{"id": 30, "name": "cell"}, {"id": 10, "name": "dust", "color": [9, 9, 9]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    metadata = own_data.register_coco_instance(fresh_name, tmp_path / "images", tmp_path / "instances.json")
    assert metadata.thing_classes == ["dust", "cell"]
    assert metadata.thing_colors[0] == [9, 9, 9]
    (sample,) = DatasetCatalog.get(fresh_name)
    assert sample["file_name"] == str(tmp_path / "images/one.png")
    assert [(a["category_id"], a["segmentation"]) for a in sample["annotations"]] == [(1, [square])]
