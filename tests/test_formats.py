"""File formats: pictures, label maps, panoptic maps, run lengths, boxes, class tables, atomic writing."""

import os
import warnings

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from mask_former.formats import picture_size, read_label_map, read_panoptic_map, read_picture, replacing

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_eight_bit_picture_is_what_detectron2_reads(tmp_path, mode, image_format):
    file_name = str(tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png"))
    Image.fromarray(COLOURS).convert(mode).save(file_name)
    assert np.array_equal(read_picture(file_name, image_format), read_image(file_name, image_format))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_detectron2_does(tmp_path, orientation):
    file_name = str(tmp_path / "picture.jpg")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(file_name, exif=exif)
    picture = read_picture(file_name, "RGB")
    assert np.array_equal(picture, read_image(file_name, "RGB"))
    assert picture_size(file_name) == picture.shape[1::-1]
    assert (picture.shape[0] == 11) == (orientation >= 5)


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path):
    file_name = str(tmp_path / "picture.png")
    grey = RNG.integers(0, 65536, (7, 11)).astype(np.uint16)
    Image.fromarray(grey).save(file_name)
    expected = np.repeat(grey[..., None] // 256, 3, axis=2)
    assert np.array_equal(read_picture(file_name, "RGB"), expected)


@pytest.mark.parametrize(
    ("name", "dtype"), [("x.png", np.uint8), ("x.png", np.uint16), ("x.tif", np.uint16), ("x.png", bool)]
)
def test_label_indices_come_as_stored(tmp_path, name, dtype):
    file_name = str(tmp_path / name)
    highest = 1 if dtype is bool else np.iinfo(dtype).max
    label = RNG.integers(0, highest + 1, (7, 11)).astype(dtype)
    Image.fromarray(label).save(file_name)
    read = read_label_map(file_name)
    assert np.issubdtype(read.dtype, np.integer)
    assert np.array_equal(read, label)


def test_palette_label_gives_indices(tmp_path):
    file_name = str(tmp_path / "label.png")
    label = RNG.integers(0, 66, (7, 11), dtype=np.uint8)
    picture = Image.fromarray(label)
    picture.putpalette([200 - i for i in range(66) for _ in range(3)])
    picture.save(file_name)
    assert Image.open(file_name).mode == "P"
    assert np.array_equal(read_label_map(file_name), label)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_label_is_refused_by_name(tmp_path, mode):
    file_name = str(tmp_path / "label.png")
    Image.fromarray(COLOURS).convert(mode).save(file_name)
    with pytest.raises(
        ValueError, match=rf"label\.png.*{len(mode)} channels.*index of each colour"
    ) as caught:
        read_label_map(file_name)
    assert "\n" not in str(caught.value)


def test_panoptic_ids_are_little_endian_colours(tmp_path):
    file_name = str(tmp_path / "label.png")
    Image.fromarray(COLOURS).save(file_name)
    expected = [[int(r) + 256 * int(g) + 65536 * int(b) for r, g, b in row] for row in COLOURS]
    assert read_panoptic_map(file_name).tolist() == expected


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_panoptic_file_that_is_not_rgb_is_refused_by_name(tmp_path, mode):
    file_name = str(tmp_path / "label.png")
    Image.fromarray(COLOURS).convert(mode).save(file_name)
    message = (
        rf"label\.png: expected an RGB panoptic map .* found mode {mode}\..*RGB PNG.*mask_former_semantic"
    )
    with pytest.raises(ValueError, match=message) as caught:
        read_panoptic_map(file_name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.tif"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.9])
def test_truncated_file_is_refused_by_name_in_one_line(tmp_path, name, share):
    path = tmp_path / name
    Image.fromarray(RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow also warns of damaged TIFF tags
        with pytest.raises(ValueError, match=rf"{path}.*cannot be read") as caught:
            read_picture(str(path), "RGB")
    assert "\n" not in str(caught.value)


def test_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_picture(str(tmp_path / "gone.png"), "RGB")


def test_floating_point_picture_is_refused_by_name(tmp_path):
    path = tmp_path / "picture.tif"
    Image.fromarray(np.zeros((3, 4), dtype=np.float32)).save(path)
    with pytest.raises(ValueError, match=r"picture\.tif holds floating-point"):
        read_picture(str(path), "RGB")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "model.pth"
    file.write_text("old")

    def fail():
        with replacing(file) as partial:
            partial.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_leftovers_of_killed_writers_are_removed_in_time(tmp_path):
    fresh, stale = tmp_path / ".m.pth.1.partial", tmp_path / ".m.pth.2.partial"
    for leftover in (fresh, stale):
        leftover.write_text("half")
    os.utime(stale, (0, 0))
    with replacing(tmp_path / "m.pth") as partial:
        partial.write_text("whole")
    assert fresh.exists()
    assert not stale.exists()
    assert (tmp_path / "m.pth").read_text() == "whole"
