"""Label maps: what is read, what is refused, how they move and split."""

import numpy as np
import pytest
from detectron2.data.transforms import CropTransform, HFlipTransform, ResizeTransform
from fvcore.transforms.transform import TransformList
from PIL import Image

from mask_former.data.labels import SegmentMap, abbreviated, move, read_panoptic, read_semantic, split


def read_semantic_file(path, **options):
    return read_semantic({"sem_seg_file_name": path}, **options)


def save_ids(path, ids):
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(
        path
    )
    return str(path)


def save(path, label):
    Image.fromarray(label).save(path)
    return str(path)


def test_semantic_label_becomes_one_segment_per_class(tmp_path):
    label = np.array([[3, 3, 255, 0], [9, 3, 0, 0], [9, 9, 255, 255]], dtype=np.uint8)
    pixels, classes = read_semantic_file(save(tmp_path / "x.png", label), num_classes=10, ignore_label=255)
    assert classes.tolist() == [0, 3, 9]
    assert pixels.tolist() == [[2, 2, 0, 1], [3, 2, 1, 1], [3, 3, 0, 0]]


def test_sixteen_bit_label_keeps_large_classes(tmp_path):
    label = np.array([[846, 300, 44], [65535, 300, 846]], dtype=np.uint16)  # 300 = 256 + 44
    pixels, classes = read_semantic_file(save(tmp_path / "x.tif", label), num_classes=847, ignore_label=65535)
    assert classes.tolist() == [44, 300, 846]
    assert pixels.tolist() == [[3, 2, 1], [0, 2, 3]]


def test_ignore_label_below_the_class_count_is_void_all_the_same(tmp_path):
    label = np.array([[0, 1, 2]], dtype=np.uint8)
    pixels, classes = read_semantic_file(save(tmp_path / "x.png", label), num_classes=3, ignore_label=0)
    assert classes.tolist() == [1, 2]
    assert pixels.tolist() == [[0, 1, 2]]


def test_label_of_ignored_pixels_alone_has_no_segment(tmp_path):
    file_name = save(tmp_path / "x.png", np.full((3, 5), 255, dtype=np.uint8))
    segments = split(read_semantic_file(file_name, num_classes=4, ignore_label=255))
    assert segments.masks.shape == (0, 3, 5)
    assert segments.masks.dtype == bool
    assert not segments.valid.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 255], r"no class: 255\. Found: 0, 255; allowed: 0 to 3, and 65 for void\. .*0 and 255: write 1"),
        ([1, 2, 3, 4], r"no class: 4\. Found: 1, 2, 3, 4; .*subtract 1 .*NUM_CLASSES to 5"),
        ([0, 1, 3, 255], r"no class: 255\. .*register it as the ignore_label"),
        ([7, 26, 65], r"no class: 7, 26\. Found: 7, 26, 65; allowed: 0 to 3, and 65 for void\. Set MODEL"),
    ],
)
def test_wrong_label_value_names_file_values_and_fix(tmp_path, values, message):
    file_name = save(tmp_path / "x.png", np.array([values], dtype=np.uint8))
    with pytest.raises(ValueError, match=rf"x\.png.*{message}") as caught:
        read_semantic_file(file_name, num_classes=4, ignore_label=65)
    assert "\n" not in str(caught.value)


def test_long_list_of_values_is_abbreviated():
    assert abbreviated([1, 2, 3]) == "1, 2, 3"
    assert abbreviated(list(range(100, 200))) == "100, 101, 102, 103, 104, 105, 106, ..., 199 (100 values)"


def test_panoptic_segments_follow_the_json_and_crowds_are_void(tmp_path):
    ids = np.array([[0, 70000, 70000, 5], [5, 300, 300, 70000]])
    info = [
        {"id": 5, "category_id": 2, "iscrowd": 1},
        {"id": 70000, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 1},
        {"id": 301, "category_id": 0},  # listed, but without pixels
    ]
    segments = split(read_panoptic(save_ids(tmp_path / "x.png", ids), info, num_classes=3))
    found = {(int(c), tuple(map(tuple, np.argwhere(m)))) for c, m in zip(*segments[:2], strict=True)}
    assert found == {(1, ((0, 1), (0, 2), (1, 3))), (1, ((1, 1), (1, 2)))}
    assert segments.valid.tolist() == [[False, True, True, False], [False, True, True, True]]


def test_panoptic_id_missing_from_the_json_is_named(tmp_path):
    file_name = save_ids(tmp_path / "x.png", np.array([[0, 70000, 12, 5]]))
    with pytest.raises(
        ValueError, match=r"x\.png has segment ids .* not list: 12, 70000; listed are: 5\. "
    ) as e:
        read_panoptic(file_name, [{"id": 5, "category_id": 0}], num_classes=3)
    assert "\n" not in str(e.value)


def test_panoptic_class_out_of_range_is_named(tmp_path):
    file_name = save_ids(tmp_path / "x.png", np.array([[5]]))
    with pytest.raises(ValueError, match=r"x\.png has segments of class 3; allowed are 0 to 2"):
        read_panoptic(file_name, [{"id": 5, "category_id": 3}], num_classes=3)


def test_map_of_more_than_255_segments_survives_and_moves_exactly(tmp_path):
    rng = np.random.default_rng(1)
    label = rng.permutation(np.arange(29 * 31) % 600).reshape(29, 31).astype(np.uint16)
    segment_map = read_semantic_file(save(tmp_path / "x.png", label), num_classes=600, ignore_label=65535)
    assert segment_map.pixels.dtype == np.uint16
    resize = TransformList([ResizeTransform(29, 31, 43, 17), HFlipTransform(17), CropTransform(3, 5, 11, 23)])
    moved = segment_map._replace(pixels=move(resize, segment_map.pixels))
    # The pixel whose area holds the centre of each new one, by hand.
    rows = np.floor((np.arange(43) + 0.5) * 29 / 43).astype(int)
    columns = np.floor((np.arange(17) + 0.5) * 31 / 17).astype(int)
    expected = label[rows][:, columns][:, ::-1][5:28, 3:14]
    classes, masks, _ = split(moved)
    assert sorted(classes) == sorted(set(expected.ravel().tolist()))
    for c, mask in zip(classes, masks, strict=True):
        assert np.array_equal(mask, expected == c)


def test_resized_label_edge_stays_within_half_a_pixel():
    """As the picture's does; a rule that takes the pixel at the corner would miss by up to a whole one."""
    label = np.zeros((4, 23), dtype=np.uint8)
    label[:, 9:] = 1
    for width in range(9, 80):
        moved = move(ResizeTransform(4, 23, 5, width), label)
        assert abs(np.argmax(moved[0]) - 9 * width / 23) <= 0.5


def test_segments_that_vanish_in_the_crop_are_dropped():
    pixels = np.array([[1, 1, 2], [3, 3, 2]], dtype=np.uint8)
    segments = split(SegmentMap(pixels[:, :2], np.array([7, 8, 9])))
    assert segments.classes.tolist() == [7, 9]
    assert segments.masks.tolist() == [[[True, True], [False, False]], [[False, False], [True, True]]]
