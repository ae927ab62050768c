"""The check of a user's data: planted faults are named by file with a remedy, odd but healthy sets pass."""

import os
import re
import time

import numpy as np
import pytest
from own_faults import PLANTED
from own_sets import ODD_SETS, SETS, change_json, coco, label, panoptic, picture, save, semantic
from planting import PANOPTIC, Planted, edit, unused_segment

from mask_former.config import load_config
from mask_former.data.check import main
from mask_former.data.own import check
from mask_former.data.own.check import check_against_config, check_dataset
from mask_former.data.own.check_page import strangest, write_check_page
from mask_former.data.own.layouts import find_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "town"
    folder.mkdir()
    return folder


def checked(folder, capsys, *options: str) -> tuple[int, str]:
    status = main([str(folder), "--processes", "1", *options])
    return status, capsys.readouterr().out


def report_of(folder, **options):
    return check_dataset(find_dataset(folder), processes=1, **options)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.base}: {planted.name}")
def test_a_planted_fault_is_named_with_file_and_remedy(planted: Planted, tmp_path, capsys):
    folder = tmp_path / planted.base
    SETS[planted.base](folder)
    planted.plant(folder)
    status, text = checked(folder, capsys)
    lines = [line for line in text.splitlines() if planted.where in line]
    assert any(planted.remedy in line for line in lines), text
    assert status == planted.stops, text


@pytest.mark.parametrize("build", [*SETS.values(), *ODD_SETS], ids=lambda build: build.__name__)
def test_healthy_sets_have_no_fault(build, folder, capsys):
    build(folder)
    status, text = checked(folder, capsys)
    assert (status, text.splitlines()[-1]) == (0, "no faults")


def test_statistics_are_those_of_the_labels(folder):
    semantic(folder)
    save(folder / "images/val/d.png", picture("d", 40, 30))
    save(folder / "labels/val/d.png", np.zeros((30, 40), np.uint8))
    found = report_of(folder).statistics
    values = label()
    pixels = [int((values == number).sum()) for number in range(3)]
    assert found.pictures == {"train": 3, "val": 2}
    assert found.pixels_by_class["train"] == [3 * count for count in pixels]
    assert found.pixels_by_class["val"] == [pixels[0] + 1200, pixels[1], pixels[2]]
    assert found.pictures_by_class["val"] == found.segments_by_class["val"] == [2, 1, 1]
    assert found.void_pixels == {"train": 3 * 48, "val": 48}
    assert found.sizes == {(24, 16): 4, (40, 30): 1}
    assert (found.most_segments, found.most_segments_in) == (3, str(folder / "images/train/a.png"))


def test_instances_are_counted_without_crowds(folder):
    coco(folder)
    change_json(folder, "train", lambda content: content["annotations"][1].update(iscrowd=1))
    found = report_of(folder).statistics
    assert found.segments_by_class == {"train": [3, 2], "val": [2, 2]}
    assert found.pixels_by_class["train"] == [3 * 48, 2 * 24]


def test_panoptic_segments_are_counted(folder):
    panoptic(folder)
    found = report_of(folder).statistics
    assert found.segments_by_class["train"] == [3, 3, 3]
    assert found.pixels_by_class["val"] == [2 * (15 * 10 - 16), 2 * 15 * 14, 2 * 16]
    assert found.void_pixels["train"] == 3 * 24


def looks(folder, monkeypatch) -> list[str]:
    """Check a folder and return the pictures that were read."""
    seen = []

    class Counting(check.PictureCheck):
        def __call__(self, job):
            seen.append(os.path.basename(job.record["file_name"]))
            return super().__call__(job)

    with monkeypatch.context() as patch:
        patch.setattr(check, "PictureCheck", Counting)
        report_of(folder)
    return seen


def test_a_second_check_looks_only_at_what_has_changed(folder, monkeypatch):
    semantic(folder)
    assert looks(folder, monkeypatch) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert looks(folder, monkeypatch) == []
    save(folder / "labels/train/b.png", np.full((16, 24), 9, np.uint8))
    assert looks(folder, monkeypatch) == ["b.png"]
    assert [fault.picture for fault in report_of(folder).faults] == [str(folder / "images/train/b.png")]
    os.utime(folder / "images/val/e.png", ns=(time.time_ns(), time.time_ns()))
    assert looks(folder, monkeypatch) == ["e.png"]


def test_a_changed_annotation_file_is_read_again(folder, monkeypatch):
    coco(folder)
    assert len(looks(folder, monkeypatch)) == 5
    change_json(folder, "val", lambda content: content["annotations"][0].update(category_id=99))
    assert looks(folder, monkeypatch) == ["d.png", "e.png"]
    assert report_of(folder).stops


def test_a_broken_cache_is_made_anew(folder, tmp_path):
    semantic(folder)
    cache = tmp_path / "cache.json"
    first = report_of(folder, cache=cache)
    cache.write_text("{")
    assert report_of(folder, cache=cache) == first


def test_processes_find_the_same_as_one(folder, tmp_path):
    semantic(folder)
    for number in range(20):
        save(folder / f"images/train/{number}.png", picture(chr(number)))
        save(folder / f"labels/train/{number}.png", np.full((16, 24), number % 4, np.uint8))
    one = report_of(folder, cache=tmp_path / "one.json")
    two = check_dataset(find_dataset(folder), processes=2, cache=tmp_path / "two.json")
    assert one == two
    assert len(one.faults) == 5


def test_ignored_faults_leave_pictures_out_and_say_how_many(folder, capsys):
    semantic(folder)
    (folder / "images/train/a.png").write_bytes(b"")
    save(folder / "labels/train/b.png", np.full((16, 24), 9, np.uint8))
    assert checked(folder, capsys)[0] == 1
    status, text = checked(folder, capsys, "--ignore-faults")
    assert status == 0
    assert "2 pictures with faults are left out" in text
    left = report_of(folder, ignore_faults=True).dataset.splits["train"]
    assert [os.path.basename(record["file_name"]) for record in left] == ["c.png"]


def test_faults_of_all_pictures_cannot_be_ignored(folder, capsys):
    semantic(folder)
    for name in "abc":
        save(folder / f"labels/train/{name}.png", np.full((16, 24), 9, np.uint8))
    status, text = checked(folder, capsys, "--ignore-faults")
    assert status == 1
    assert "no training picture can be used" in text


def test_what_follows_is_mended(folder):
    coco(folder)
    change_json(folder, "train", lambda content: content["annotations"][0].update(bbox=[2, 3, 10, 9]))
    change_json(folder, "train", lambda content: content["images"][0].pop("width"))
    report = report_of(folder)
    record = report.dataset.splits["train"][0]
    assert not report.stops
    assert (record["width"], record["height"]) == (24, 16)
    assert record["annotations"][0]["bbox"] == [2, 3, 8, 6]


def test_segments_without_a_pixel_are_left_out(folder):
    panoptic(folder)
    edit(PANOPTIC, unused_segment)(folder)
    record = report_of(folder).dataset.splits["train"][0]
    assert [segment["id"] for segment in record["segments_info"]] == [1000, 2000, 3]


def test_pictures_without_labels_are_left_out(folder):
    semantic(folder)
    (folder / "labels/train/a.png").unlink()
    records = report_of(folder).dataset.splits["train"]
    assert [os.path.basename(record["file_name"]) for record in records] == ["b.png", "c.png"]


def test_a_configuration_is_held_against_the_data(folder):
    panoptic(folder)
    report = report_of(folder)
    keys = {"classes": "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "queries": "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"}
    cfg = load_config(None, [keys["classes"], 3, keys["queries"], 3])
    assert check_against_config(report.dataset, report.statistics, cfg) == []
    cfg = load_config(None, [keys["classes"], 80, keys["queries"], 2])
    classes, queries = check_against_config(report.dataset, report.statistics, cfg)
    assert (classes.where, classes.remedy) == (keys["classes"], "Set it to 3.")
    assert queries.where == keys["queries"]
    assert f"{folder}/train/a.png has 3 segments" in queries.found
    assert classes.stops


def test_the_strangest_picture_is_the_dark_one(folder):
    semantic(folder)
    save(folder / "images/train/b.png", picture("b") // 50)
    (name, reason), *_ = strangest(report_of(folder))
    assert name == str(folder / "images/train/b.png")
    assert reason.startswith(("brightness", "contrast"))


def test_the_page_is_one_file_that_shows_faults_and_drawings(folder, capsys, tmp_path):
    semantic(folder)
    save(folder / "labels/train/b.png", np.full((16, 24), 9, np.uint8))
    status, text = checked(folder, capsys, "--page", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert status == 1
    assert str(tmp_path / "page.html") in text
    assert "labels/train/b.png: values 9" in page
    assert page.count("<figure>") >= 5
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page


@pytest.mark.parametrize("build", [coco, panoptic], ids=["instance", "panoptic"])
def test_drawings_have_the_colors_of_the_classes(build, folder, tmp_path):
    build(folder)
    report = report_of(folder)
    write_check_page(report, tmp_path / "page.html")
    for color in report.dataset.colors:
        assert f"#{bytes(color).hex()}" in (tmp_path / "page.html").read_text()


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    status, text = checked(tmp_path / "nowhere", capsys)
    assert status == 1
    assert text.count("\n") == 1
    assert "nowhere" in text
