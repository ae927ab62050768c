"""The training mapper and the test mapper, on small files of the real kinds."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image

from mask_former.config import load_config
from mask_former.data.augmentations import crop_recipe, detr_recipe
from mask_former.data.mapper import TrainingMapper, build_test_mapper, build_train_mapper

HEIGHT, WIDTH = 37, 53
SMALL = [
    *(
        "INPUT.MIN_SIZE_TRAIN",
        "(24,40)",
        "INPUT.MAX_SIZE_TRAIN",
        80,
        "INPUT.MIN_SIZE_TRAIN_SAMPLING",
        "choice",
    ),
    *("INPUT.FORMAT", "RGB", "INPUT.COLOR_AUG_SSD", True, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 12),
    *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(22,30)"),
]


def config(mapper="mask_former_semantic", *opts):
    return load_config(opts=[*SMALL, "INPUT.DATASET_MAPPER_NAME", mapper, *opts])


def blobs(rng, values):
    """Return (HEIGHT, WIDTH) rectangles of random values, some over others."""
    label = np.full((HEIGHT, WIDTH), values[0])
    for value in rng.permutation(np.repeat(values, 2)):
        y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        label[y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = value
    return label


@pytest.fixture
def entry(tmp_path):
    """Return an entry with a label of each kind: semantic (void 255), panoptic (void 0), annotations."""
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / "picture.jpg")
    Image.fromarray(blobs(rng, [255, 0, 3, 7, 11]).astype(np.uint8)).save(tmp_path / "semantic.png")
    ids = blobs(rng, [0, 9, 300, 70001, 70002])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "panoptic.png")
    masks = rng.random((3, HEIGHT, WIDTH)) < 0.5
    return {
        "file_name": str(tmp_path / "picture.jpg"),
        "image_id": 17,
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [
            {"id": 9, "category_id": 4, "iscrowd": 1},
            {"id": 300, "category_id": 2, "iscrowd": 0},
            {"id": 70001, "category_id": 2, "iscrowd": 0},
            {"id": 70002, "category_id": 11, "iscrowd": 0},
        ],
        "annotations": [
            {"category_id": i + 3, "segmentation": mask, "iscrowd": int(i == 2)}
            for i, mask in enumerate(masks)
        ],
    }


def with_seed(seed, function, *args):
    np.random.seed(seed)
    random.seed(seed)
    return function(*args)


def augmented(cfg, recipe, image, seed):
    """Return image and transforms of a recipe as Detectron2 alone applies it."""
    aug_input = T.AugInput(image)
    transforms = with_seed(seed, T.AugmentationList(recipe(cfg)), aug_input)
    return aug_input.image, transforms


def expected_padding(values, multiple, value):
    height, width = (int(np.ceil(n / multiple)) * multiple for n in values.shape[:2])
    padded = np.full((height, width, *values.shape[2:]), value, dtype=values.dtype)
    for y in range(values.shape[0]):
        padded[y, : values.shape[1]] = values[y]
    return padded


@pytest.mark.parametrize("divisibility", [-1, 16, 32])
@pytest.mark.parametrize("seed", range(6))
def test_semantic_sample_is_the_straightforward_one(entry, seed, divisibility):
    cfg = config("mask_former_semantic", "INPUT.SIZE_DIVISIBILITY", divisibility)
    sample = with_seed(seed, build_train_mapper(cfg), entry)
    image, transforms = augmented(cfg, crop_recipe, read_image(entry["file_name"], "RGB"), seed)
    label = transforms.apply_segmentation(np.array(Image.open(entry["sem_seg_file_name"])))
    multiple = max(divisibility, 1)
    image, label = expected_padding(image, multiple, 128), expected_padding(label, multiple, 255)
    assert sample["image"].dtype == torch.uint8
    assert np.array_equal(sample["image"].permute(1, 2, 0), image)
    assert sample["sem_seg"].dtype == torch.int64
    assert np.array_equal(sample["sem_seg"], label)
    instances = sample["instances"]
    assert instances.image_size == label.shape
    assert instances.gt_classes.tolist() == [c for c in np.unique(label) if c != 255]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.dtype == torch.bool
    for c, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        assert np.array_equal(mask, label == c.item())
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)
    assert "valid_mask" not in sample


@pytest.mark.parametrize(
    ("name", "recipe"), [("mask_former_panoptic", crop_recipe), ("detr_panoptic", detr_recipe)]
)
@pytest.mark.parametrize("seed", range(6))
def test_panoptic_sample_is_the_straightforward_one(entry, name, recipe, seed):
    cfg = config(name, "INPUT.SIZE_DIVISIBILITY", 16, "MODEL.MASK_FORMER.VOID_IN_LOSS", "ignore")
    sample = with_seed(seed, build_train_mapper(cfg), entry)
    image, transforms = augmented(cfg, recipe, read_image(entry["file_name"], "RGB"), seed)
    # Decoded after the geometry, while the mapper decodes before it.
    rgb = transforms.apply_segmentation(np.array(Image.open(entry["pan_seg_file_name"]))).astype(int)
    ids = expected_padding(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], 16, 0)
    assert np.array_equal(sample["image"].permute(1, 2, 0), expected_padding(image, 16, 128))
    segments = {70001: 2, 70002: 11, 300: 2}
    expected = [(c, (ids == i).tolist()) for i, c in segments.items() if (ids == i).any()]
    found = list(
        zip(sample["instances"].gt_classes.tolist(), sample["instances"].gt_masks.tolist(), strict=True)
    )
    assert sorted(found) == sorted(expected)
    assert np.array_equal(sample["valid_mask"], (ids != 0) & (ids != 9))
    assert "sem_seg" not in sample
    assert "segments_info" not in sample


@pytest.mark.parametrize("seed", range(4))
def test_instance_sample_is_the_straightforward_one(entry, seed):
    cfg = config(
        "mask_former_instance", "INPUT.SIZE_DIVISIBILITY", 16, "MODEL.MASK_FORMER.VOID_IN_LOSS", "ignore"
    )
    sample = with_seed(seed, build_train_mapper(cfg), entry)
    image, transforms = augmented(cfg, crop_recipe, read_image(entry["file_name"], "RGB"), seed)
    masks = [transforms.apply_segmentation(a["segmentation"].astype(np.uint8)) for a in entry["annotations"]]
    first, second, crowd = (expected_padding(mask, 16, 0) for mask in masks)
    inside = expected_padding(np.ones(image.shape[:2], dtype=bool), 16, False)
    assert sample["instances"].gt_classes.tolist() == [3, 4]
    assert np.array_equal(sample["instances"].gt_masks, np.stack([first, second]) == 1)
    assert np.array_equal(sample["valid_mask"], inside & ((crowd == 0) | (first == 1) | (second == 1)))
    assert "annotations" not in sample


def test_semantic_void_and_padding_are_invalid_when_void_is_ignored(entry):
    cfg = config(
        "mask_former_semantic", "INPUT.SIZE_DIVISIBILITY", 32, "MODEL.MASK_FORMER.VOID_IN_LOSS", "ignore"
    )
    sample = with_seed(0, build_train_mapper(cfg), entry)
    assert np.array_equal(sample["valid_mask"], sample["sem_seg"] != 255)
    assert 0 < sample["valid_mask"].sum() < sample["valid_mask"].numel()


def test_padding_goes_up_to_a_multiple_and_never_crops(entry):
    opts = ["INPUT.CROP.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", "(40,)", "INPUT.SIZE_DIVISIBILITY", 32]
    sample = with_seed(1, build_train_mapper(config("mask_former_semantic", *opts)), entry)
    assert sample["image"].shape == (3, 64, 64)  # 40 x 57 resized
    assert (sample["image"][:, 40:] == 128).all()
    assert (sample["image"][:, :, 57:] == 128).all()
    assert (sample["sem_seg"][40:] == 255).all()


def test_mapper_leaves_the_entry_as_it_is(entry):
    for name in ("mask_former_semantic", "mask_former_panoptic", "mask_former_instance"):
        before = copy.deepcopy({k: v for k, v in entry.items() if k != "annotations"})
        annotations = [dict(a) for a in entry["annotations"]]
        with_seed(0, build_train_mapper(config(name)), entry)
        assert {k: v for k, v in entry.items() if k != "annotations"} == before
        assert all(a == b for a, b in zip(annotations, entry["annotations"], strict=True))


def test_every_label_kind_without_segments_is_an_ordinary_sample(entry, tmp_path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)).save(tmp_path / "semantic.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / "panoptic.png")
    entry.update(segments_info=[], annotations=[])
    for name in ("mask_former_semantic", "mask_former_panoptic", "detr_panoptic", "mask_former_instance"):
        sample = with_seed(0, build_train_mapper(config(name)), entry)
        instances, size = sample["instances"], tuple(sample["image"].shape[1:])
        assert instances.gt_masks.shape == (0, *size)
        assert instances.gt_masks.dtype == torch.bool
        assert instances.gt_classes.shape == (0,)
        assert instances.gt_classes.dtype == torch.int64


def test_ignore_label_of_the_entry_wins_and_leaves_as_that_of_the_model(entry):
    label = np.array(Image.open(entry["sem_seg_file_name"]))
    label[label == 255] = 65
    Image.fromarray(label).save(entry["sem_seg_file_name"])
    cfg = config("mask_former_semantic", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200)
    sample = with_seed(0, build_train_mapper(cfg), {**entry, "ignore_label": 65})
    values = set(sample["sem_seg"].unique().tolist())
    assert 200 in values
    assert values <= {0, 3, 7, 11, 200}
    with pytest.raises(ValueError, match=r"semantic\.png .* no class: 65"):
        build_train_mapper(cfg)({**entry, "ignore_label": 255})


def test_sixteen_bit_label_whose_void_would_become_a_class_is_refused_before_training(entry, tmp_path):
    label = np.resize(np.array([300, 65535, 255, 0], np.uint16), (HEIGHT, WIDTH))
    Image.fromarray(label).save(tmp_path / "deep.png")
    deep = {**entry, "sem_seg_file_name": str(tmp_path / "deep.png")}
    keys = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 847, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE")
    MetadataCatalog.get("ignore_65535_for_test").ignore_label = 65535
    train = ("DATASETS.TRAIN", ("ignore_65535_for_test",))
    with pytest.raises(ValueError, match=r"IGNORE_VALUE is 255, which is also one of the 847 classes.*65535"):
        build_train_mapper(config("mask_former_semantic", *keys, 255, *train))
    sample = build_train_mapper(config("mask_former_semantic", *keys, 65535, *train))(deep)
    assert set(sample["sem_seg"].unique().tolist()) <= {0, 255, 300, 65535}
    assert set(sample["instances"].gt_classes.tolist()) <= {0, 255, 300}


def test_ignore_label_comes_from_the_metadata_where_training_sets_agree(entry):
    MetadataCatalog.get("ignore_65_for_test").ignore_label = 65
    MetadataCatalog.get("ignore_66_for_test").ignore_label = 66
    same = config("mask_former_semantic", "DATASETS.TRAIN", ("ignore_65_for_test",))
    assert TrainingMapper(same).ignore_label == 65
    both = ("ignore_65_for_test", "ignore_66_for_test")
    differing = build_train_mapper(config("mask_former_semantic", "DATASETS.TRAIN", both))
    with pytest.raises(ValueError, match=r"picture\.jpg has no 'ignore_label'.*build_train_loader"):
        differing(entry)


def test_crop_looks_at_categories_when_the_area_of_one_is_limited(entry, tmp_path):
    """The left half is one class in two segments: only crops across the middle hold two classes."""
    ids = np.full((HEIGHT, WIDTH, 3), 0, dtype=np.uint8)
    ids[:, :30, 0] = 1
    ids[:18, :30, 0] = 2
    ids[:, 30:, 0] = 3
    Image.fromarray(ids).save(tmp_path / "panoptic.png")
    entry["segments_info"] = [{"id": i, "category_id": c} for i, c in ((1, 5), (2, 5), (3, 6))]
    size = ["INPUT.CROP.SIZE", "(20,20)", "INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)"]
    cfg = config("mask_former_panoptic", *size, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.99)
    mapper = build_train_mapper(cfg)
    both = sum({5, 6} == set(with_seed(s, mapper, entry)["instances"].gt_classes.tolist()) for s in range(20))
    assert both == 20  # ten tries a sample; a single try holds both classes in about 0.6 of cases


def test_flip_follows_its_key(entry):
    opts = ["INPUT.CROP.ENABLED", False, "INPUT.COLOR_AUG_SSD", False, "INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)"]
    original = read_image(entry["file_name"], "RGB")
    flipped = {"horizontal": original[:, ::-1], "vertical": original[::-1], "none": original}
    for direction, other in flipped.items():
        mapper = build_train_mapper(config("mask_former_semantic", *opts, "INPUT.RANDOM_FLIP", direction))
        images = [with_seed(s, mapper, entry)["image"].permute(1, 2, 0).numpy() for s in range(12)]
        assert all(np.array_equal(i, original) or np.array_equal(i, other) for i in images)
        assert any(np.array_equal(i, other) for i in images)
    with pytest.raises(
        ValueError, match=r"INPUT\.RANDOM_FLIP is 'both'; choose horizontal, vertical or none"
    ):
        build_train_mapper(config("mask_former_semantic", "INPUT.RANDOM_FLIP", "both"))


def test_detr_recipe_crops_about_every_second_picture(entry):
    opts = ["INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", "(384,600)", "INPUT.COLOR_AUG_SSD", False]
    recipe = detr_recipe(config("detr_panoptic", *opts))
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    lists = [with_seed(s, T.AugmentationList(recipe), T.AugInput(image)).transforms for s in range(60)]
    cropped = [tuple(type(t).__name__ for t in ts[1:]) for ts in lists if len(ts) == 4]
    assert set(cropped) == {("ResizeTransform", "CropTransform", "ResizeTransform")}
    assert 20 <= len(cropped) <= 40
    assert {min(ts[1].new_h, ts[1].new_w) for ts in lists if len(ts) == 4} == {400, 500, 600}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mask_former_semantic", "sem_seg_file_name"),
        ("mask_former_panoptic", "pan_seg_file_name"),
        ("mask_former_instance", "annotations"),
    ],
)
def test_entry_without_its_label_is_refused_by_name(entry, name, key):
    del entry[key]
    with pytest.raises(ValueError, match=rf"picture\.jpg has no '{key}'.*INPUT\.DATASET_MAPPER_NAME"):
        build_train_mapper(config(name))(entry)


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_panoptic_file_that_the_evaluators_refuse_is_refused_in_training(entry, mode):
    panoptic = Image.open(entry["pan_seg_file_name"])
    panoptic.convert(mode).save(entry["pan_seg_file_name"])
    with pytest.raises(ValueError, match=rf"panoptic\.png: expected an RGB .* found mode {mode}"):
        build_train_mapper(config("mask_former_panoptic"))(entry)


def test_one_bit_label_has_classes_zero_and_one(entry):
    bits = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5 == 0
    Image.fromarray(bits).save(entry["sem_seg_file_name"])
    sample = build_train_mapper(config("mask_former_semantic"))(entry)
    assert set(sample["sem_seg"].unique().tolist()) <= {0, 1, 255}
    assert sample["instances"].gt_classes.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic"])
def test_label_of_another_size_is_refused_by_name(entry, name):
    key = "sem_seg_file_name" if name == "mask_former_semantic" else "pan_seg_file_name"
    label = np.array(Image.open(entry[key]))
    Image.fromarray(label[:, :-1]).save(entry[key])
    with pytest.raises(
        ValueError, match=r"\.png is 52x37, but its picture .*picture\.jpg is 53x37"
    ) as caught:
        build_train_mapper(config(name))(entry)
    assert "\n" not in str(caught.value)


def test_picture_of_another_size_than_stated_is_refused_by_name(entry):
    with pytest.raises(ValueError, match=r"picture\.jpg"):
        build_train_mapper(config())({**entry, "width": WIDTH + 1, "height": HEIGHT})


def test_unknown_mapper_is_refused_with_the_choices():
    with pytest.raises(
        ValueError, match=r"'coco_lsj'; choose one of mask_former_semantic, .*detr_panoptic, or"
    ):
        build_train_mapper(config("coco_lsj"))


def test_area_limit_without_a_label_map_is_refused():
    with pytest.raises(ValueError, match="SINGLE_CATEGORY_MAX_AREA below 1 needs a label map"):
        build_train_mapper(config("mask_former_instance", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.9))


@pytest.mark.parametrize("name", ["", "default"])
def test_default_is_the_mapper_of_detectron2(name):
    assert type(build_train_mapper(config(name))) is DatasetMapper


def test_test_mapper_gives_the_image_of_detectron2_without_reading_labels(entry):
    cfg = config("mask_former_semantic", "INPUT.MIN_SIZE_TEST", 29, "INPUT.MAX_SIZE_TEST", 40)
    reference = DatasetMapper(cfg, is_train=False)(entry)
    for key in ("sem_seg_file_name", "pan_seg_file_name"):
        entry[key] = "/nowhere.png"
    sample = build_test_mapper(cfg)(entry)
    assert torch.equal(sample["image"], reference["image"])
    assert all(sample[key] == reference[key] for key in ("height", "width", "image_id", "file_name"))
    assert not {"annotations", "sem_seg", "instances"} & sample.keys()


def test_mappers_can_be_sent_to_other_processes(entry):
    for mapper in (build_train_mapper(config("detr_panoptic")), build_test_mapper(config())):
        sent = pickle.loads(pickle.dumps(mapper))
        assert torch.equal(with_seed(2, sent, entry)["image"], with_seed(2, mapper, entry)["image"])


def test_unlimited_crop_is_that_of_the_published_augmentation():
    cfg = config()
    (crop,) = [a for a in crop_recipe(cfg) if "Crop" in type(a).__name__]
    published = T.RandomCrop_CategoryAreaConstraint("absolute", (22, 30), 1.0, 255)
    image, label = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for seed in range(5):
        ours = with_seed(seed, crop.get_transform, image)
        theirs = with_seed(seed, published.get_transform, image, label)
        assert (ours.x0, ours.y0, ours.w, ours.h) == (theirs.x0, theirs.y0, theirs.w, theirs.h)
