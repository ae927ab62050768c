"""The loaders: data sets read, samples drawn and augmented the same way however a run is cut up."""

import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.config import load_config
from mask_former.data.loader import Draw, build_test_loader, build_train_loader, load_training_entries

NAMES = ("loader_test_a", "loader_test_b")


@pytest.fixture
def data_sets(tmp_path):
    """Register two semantic sets: five pictures with void 255, four with void 200; wide and tall ones."""
    rng = np.random.default_rng(0)
    for name, count, void in zip(NAMES, (5, 4), (255, 200), strict=True):
        entries = []
        for i in range(count):
            shape = (20 + i, 27) if i % 3 else (31, 22)
            picture, label = tmp_path / f"{name}{i}.jpg", tmp_path / f"{name}{i}.png"
            Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(picture)
            values = rng.choice([0, 1, 2, void], shape).astype(np.uint8)
            Image.fromarray(values).save(label)
            entries.append({"file_name": str(picture), "sem_seg_file_name": str(label)})
        DatasetCatalog.register(name, lambda entries=entries: entries)
        MetadataCatalog.get(name).set(ignore_label=void, stuff_classes=["a", "b", "c"])
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(*opts):
    small = ["INPUT.MIN_SIZE_TRAIN", "(16,24)", "INPUT.COLOR_AUG_SSD", True, "INPUT.MIN_SIZE_TEST", 19]
    model = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    return load_config(opts=[*small, *model, "DATASETS.TRAIN", NAMES, "SEED", 7, *opts])


def draw(count, *opts, **others):
    return list(islice(build_train_loader(config(*opts), **others), count))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert [s["file_name"] for s in batch] == [s["file_name"] for s in other]
        assert all(torch.equal(s["image"], o["image"]) for s, o in zip(batch, other, strict=True))
        assert all(torch.equal(s["sem_seg"], o["sem_seg"]) for s, o in zip(batch, other, strict=True))


@pytest.mark.usefixtures("data_sets")
def test_samples_do_not_depend_on_the_number_of_workers():
    assert_same(draw(9, "DATALOADER.NUM_WORKERS", 2), draw(9))


@pytest.mark.usefixtures("data_sets")
def test_loader_started_at_an_iteration_continues_the_unbroken_one():
    assert_same(draw(13, start_iteration=7), draw(20)[7:])


@pytest.mark.usefixtures("data_sets")
def test_seed_changes_the_samples_and_negative_seed_is_drawn_anew():
    whole = draw(4)
    assert_same(draw(4, "SEED", -1, seed=7), whole)
    names = [[s["file_name"] for b in draw(4, "SEED", -1) for s in b] for _ in range(4)]
    assert len({tuple(n) for n in names}) > 1


@pytest.mark.usefixtures("data_sets")
def test_one_picture_is_augmented_anew_in_each_epoch():
    images = {}
    for batch in draw(40):
        for sample in batch:
            images.setdefault(sample["file_name"], []).append(sample["image"].numpy().tobytes())
    assert all(len(set(seen)) > 0.7 * len(seen) > 3 for seen in images.values())


@pytest.mark.usefixtures("data_sets")
def test_loading_leaves_all_random_states_as_they_are():
    loader = build_train_loader(config())
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    next(iter(loader))
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert after == before


@pytest.mark.usefixtures("data_sets")
def test_each_set_keeps_its_own_ignore_label():
    values = {name: set() for name in NAMES}
    for batch in draw(20):
        for sample in batch:
            values[sample["dataset_name"]] |= set(sample["sem_seg"].unique().tolist())
    assert values == {name: {0, 1, 2, 255} for name in NAMES}


@pytest.mark.usefixtures("data_sets")
def test_batches_hold_pictures_of_one_aspect_only_if_grouping_is_on():
    def mixed(*opts):
        batches = draw(30, *opts)
        return sum(len({s["width"] > s["height"] for s in batch}) > 1 for batch in batches)

    assert mixed() == 0
    assert mixed("DATALOADER.ASPECT_RATIO_GROUPING", False) > 0


@pytest.mark.usefixtures("data_sets")
def test_pictures_cut_to_one_size_need_no_groups():
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(16,16)"]
    batches = draw(30, *crop, "INPUT.SIZE_DIVISIBILITY", 16)
    assert {tuple(s["image"].shape) for b in batches for s in b} == {(3, 16, 16)}
    assert any(len({s["width"] > s["height"] for s in batch}) > 1 for batch in batches)


@pytest.mark.usefixtures("data_sets")
def test_entry_that_the_mapper_refuses_gives_way_to_the_next():
    refused = load_training_entries(config())[2]["file_name"]
    loader = build_train_loader(config(), mapper=lambda e: None if e["file_name"] == refused else e)
    names = [s["file_name"] for batch in islice(loader, 18) for s in batch]
    assert refused not in names
    assert len(names) == 36


@pytest.mark.usefixtures("data_sets")
def test_registered_entries_stay_as_they_are():
    load_training_entries(config())
    assert all(set(entry) == {"file_name", "sem_seg_file_name"} for entry in DatasetCatalog.get(NAMES[0]))


@pytest.mark.usefixtures("data_sets")
def test_test_loader_gives_each_picture_once_in_order():
    samples = [s for batch in build_test_loader(config(), NAMES[0]) for s in batch]
    assert [s["file_name"] for s in samples] == [e["file_name"] for e in DatasetCatalog.get(NAMES[0])]
    assert all(min(s["image"].shape[1:]) == 19 for s in samples)


@pytest.mark.usefixtures("data_sets")
def test_repeated_picture_is_refused_when_the_list_is_built():
    entries = DatasetCatalog.get(NAMES[1])
    entries.append(dict(entries[0]))
    with pytest.raises(
        ValueError, match=r"loader_test_b has 1 image ids .* first is '.*loader_test_b0\.jpg', of"
    ):
        build_train_loader(config())
    for i, entry in enumerate(entries):
        entry.update(image_id=i // 2, file_name=f"{i}.jpg")
    with pytest.raises(ValueError, match=r"has 2 image ids .* first is 0, of 0\.jpg and 1\.jpg") as caught:
        build_test_loader(config(), NAMES[1])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("data_sets")
def test_pictures_without_annotations_are_left_out_only_if_asked():
    for name in NAMES:
        for i, entry in enumerate(DatasetCatalog.get(name)):
            entry["annotations"] = [{"iscrowd": 1}, {}][i % 2 : i]
    every = load_training_entries(config("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False))
    some = load_training_entries(config())
    assert len(every) == 9
    assert [e["file_name"] for e in some] == [
        e["file_name"] for e in every if any(not a.get("iscrowd") for a in e["annotations"])
    ]
    assert 0 < len(some) < 9


@pytest.mark.usefixtures("data_sets")
def test_sets_of_different_classes_are_refused():
    MetadataCatalog.remove(NAMES[1])
    MetadataCatalog.get(NAMES[1]).stuff_classes = ["a", "c", "b"]
    with pytest.raises(ValueError, match=r"stuff_classes.*loader_test_a.*loader_test_b"):
        load_training_entries(config())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "expected TrainingSampler"),
        (["DATALOADER.REPEAT_THRESHOLD", 0.1], "expected TrainingSampler .* and 0.0"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_train_loader(config(*opts))


@pytest.mark.usefixtures("data_sets")
def test_data_set_of_the_loader_can_be_sent_to_spawned_workers():
    dataset = build_train_loader(config()).dataset
    draw_of_third = Draw(number=3, position=12)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[draw_of_third]["image"], dataset[draw_of_third]["image"])
