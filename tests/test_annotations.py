"""Instance annotations: polygons, run lengths, crowds."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data.transforms import CropTransform, HFlipTransform, NoOpTransform, ResizeTransform
from fvcore.transforms.transform import TransformList

from mask_former.data.labels import instance_segments

SHAPE = (19, 26)


def rectangle(x0, y0, x1, y1, category_id=0, **others):
    return {
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "category_id": category_id,
        "iscrowd": 0,
        **others,
    }


def run_lengths(mask, compressed):
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return runs
    column_first = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(column_first)) + 1
    counts = np.diff([0, *edges, column_first.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if column_first[0] == 0 else [0, *counts]}


def segments_of(annotations, transform=None, shape=SHAPE, padded_shape=None, num_classes=5):
    return instance_segments(
        annotations,
        transform or NoOpTransform(),
        file_name="picture.jpg",
        read_shape=SHAPE,
        shape=shape,
        padded_shape=padded_shape or shape,
        num_classes=num_classes,
    )


def test_polygons_fill_whole_pixels_and_may_overlap():
    segments = segments_of([rectangle(2, 3, 9, 8, 4), rectangle(5, 3, 26, 19, 1)])
    assert segments.classes.tolist() == [4, 1]
    expected = np.zeros((2, *SHAPE), dtype=bool)
    expected[0, 3:8, 2:9] = True
    expected[1, 3:19, 5:26] = True
    assert np.array_equal(segments.masks, expected)
    assert segments.valid.all()


def test_polygons_of_one_instance_are_united():
    both = {
        "category_id": 0,
        "segmentation": rectangle(0, 0, 2, 2)["segmentation"] + rectangle(10, 9, 12, 14)["segmentation"],
    }
    assert segments_of([both]).masks.sum() == 4 + 10


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("form", ["compressed", "plain", "array"])
def test_masks_move_by_the_nearest_pixel_whatever_their_form(count, form):
    rng = np.random.default_rng(count)
    masks = rng.random((count, *SHAPE)) < 0.4
    forms = {
        "compressed": lambda m: run_lengths(m, True),
        "plain": lambda m: run_lengths(m, False),
        "array": lambda m: m,
    }
    annotations = [{"segmentation": forms[form](m), "category_id": i % 5} for i, m in enumerate(masks)]
    transform = TransformList(
        [ResizeTransform(*SHAPE, 31, 40), HFlipTransform(40), CropTransform(4, 2, 30, 27)]
    )
    segments = segments_of(annotations, transform, shape=(27, 30))
    rows = np.floor((np.arange(31) + 0.5) * 19 / 31).astype(int)
    columns = np.floor((np.arange(40) + 0.5) * 26 / 40).astype(int)
    expected = masks[:, rows][:, :, columns][:, :, ::-1][:, 2:29, 4:34]
    assert np.array_equal(segments.masks, expected)
    assert segments.classes.tolist() == [i % 5 for i in range(count)]


def test_polygon_and_run_lengths_of_one_shape_agree_after_crop_and_flip():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5:18, 3:20] = True
    crop = TransformList([CropTransform(6, 7, 13, 9), HFlipTransform(13)])
    annotations = [rectangle(3, 5, 20, 18), {"segmentation": run_lengths(mask, True), "category_id": 0}]
    polygon, runs = segments_of(annotations, crop, shape=(9, 13)).masks
    assert np.array_equal(polygon, runs)
    assert polygon.all()


def test_instances_outside_the_crop_are_dropped_and_padding_is_invalid():
    annotations = [rectangle(0, 0, 4, 4, 1), rectangle(10, 10, 30, 30, 2)]
    segments = segments_of(annotations, CropTransform(8, 8, 7, 5), shape=(5, 7), padded_shape=(8, 8))
    expected = np.zeros((8, 8), dtype=bool)
    expected[2:5, 2:7] = True
    assert segments.classes.tolist() == [2]
    assert np.array_equal(segments.masks, expected[None])  # nothing is drawn into the padding
    assert np.array_equal(segments.valid, np.pad(np.ones((5, 7), dtype=bool), ((0, 3), (0, 1))))


def test_crowd_is_no_instance_and_invalid_where_no_instance_covers_it():
    segments = segments_of([rectangle(0, 0, 6, 6, 3, iscrowd=1), rectangle(4, 4, 9, 9, 2)])
    assert segments.classes.tolist() == [2]
    invalid = np.zeros(SHAPE, dtype=bool)
    invalid[:6, :6] = True
    invalid[4:6, 4:6] = False
    assert np.array_equal(segments.valid, ~invalid)


def test_no_annotations_give_no_segments():
    segments = segments_of([])
    assert segments.masks.shape == (0, *SHAPE)
    assert segments.masks.dtype == bool
    assert segments.classes.dtype == np.int64
    assert segments.valid.all()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 0, "segmentation": [[1, 2, 3, 4]]}, r"polygons have \[4\] numbers"),
        ({"category_id": 0, "segmentation": []}, r"polygons have \[\] numbers"),
        ({"category_id": 0}, r"segmentation is NoneType; expected a list of polygons"),
        ({"category_id": 0, "segmentation": np.ones((19, 25))}, r"is 26x19, but the mask .* is 25x19"),
        (rectangle(0, 0, 2, 2, 5), r"has segments of class 5; allowed are 0 to 4"),
    ],
)
def test_bad_annotation_is_refused_with_the_picture_named(annotation, message):
    with pytest.raises(ValueError, match=rf"picture\.jpg.*{message}") as caught:
        segments_of([annotation])
    assert "\n" not in str(caught.value)
