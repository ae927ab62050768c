"""The programs datasets/prepare_*.py, on small trees in the real layouts, and what they share."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import h5py
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.data import datasets
from mask_former.formats import load_classes

PROGRAMS = Path(__file__).parents[1] / "datasets"
ADE20K = "ADEChallengeData2016"
ADE20K_FULL = "ADE20K_2021_17_01"


def load_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), PROGRAMS / f"{name}.py")
    program = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = program
    spec.loader.exec_module(program)
    return program


prepare = load_program("preparation")  # the programs import it from beside them
sem_seg = load_program("prepare_ade20k_sem_seg")
pan_seg = load_program("prepare_ade20k_pan_seg")
full = load_program("prepare_ade20k_full_sem_seg")
coco_stuff = load_program("prepare_coco_stuff_10k_v1.0_sem_seg")


def run(name: str, root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program as a user does."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAMS / f"{name}.py"), "--root", str(root), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=root,  # not the repository: paths must not depend on it
        capture_output=True,
        text=True,
    )


def run_here(program: ModuleType, monkeypatch, root: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--root", str(root), "--workers", "1", *arguments])
    prepare.run_program(program.main)


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path, **options)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def registered(tmp_path):
    """The published sets registered under the test's folder."""
    datasets.register_all(tmp_path)
    yield tmp_path
    datasets.register_all()


# ADE20K, semantic


def ade20k_tree(root: Path, rng) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write two training pictures and one for validation; return their semantic and instance labels."""
    labels = {}
    for split, stem in (
        ("training", "train_00000001"),
        ("training", "train_00000002"),
        ("validation", "val_00000001"),
    ):
        semantic = rng.integers(0, 151, (9, 13))
        instance = np.zeros((9, 13, 3))
        instance[2:6, 3:9] = (4, 1, 50)
        instance[5:8, 8:12] = (4, 2, 60)
        save(root / ADE20K / f"images/{split}/ADE_{stem}.jpg", rng.integers(0, 256, (9, 13, 3)))
        save(root / ADE20K / f"annotations/{split}/ADE_{stem}.png", semantic)
        save(root / ADE20K / f"annotations_instance/{split}/ADE_{stem}.png", instance)
        labels[f"ADE_{stem}"] = (semantic, instance)
    return labels


def test_ade20k_classes_move_down_by_one_and_no_class_becomes_255():
    labels = np.array([[0, 1, 2], [149, 150, 0]], dtype=np.uint8)
    converted = sem_seg.convert(labels)
    assert converted.tolist() == [[255, 0, 1], [148, 149, 255]]
    assert converted.dtype == np.uint8


def test_ade20k_label_above_150_is_refused():
    with pytest.raises(ValueError, match="151"):
        sem_seg.convert(np.array([[151]], dtype=np.uint8))


def test_ade20k_semantic_program_writes_what_registration_reads(registered, rng):
    labels = ade20k_tree(registered, rng)
    ended = run("prepare_ade20k_sem_seg", registered, "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    samples = DatasetCatalog.get("ade20k_sem_seg_train") + DatasetCatalog.get("ade20k_sem_seg_val")
    assert len(samples) == 3
    for sample in samples:
        semantic, _ = labels[Path(sample["file_name"]).stem]
        expected = [[255 if value == 0 else value - 1 for value in row] for row in semantic.tolist()]
        assert read(Path(sample["sem_seg_file_name"])).tolist() == expected


def test_missing_source_ends_a_program_with_path_and_where_to_get_it(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run_here(sem_seg, monkeypatch, tmp_path)
    message = str(ended.value)
    assert message.startswith("error: ")
    assert str(tmp_path / ADE20K / "annotations/training") in message
    assert "ADEChallengeData2016.zip" in message


def test_file_that_is_no_label_map_is_named(monkeypatch, tmp_path, rng):
    ade20k_tree(tmp_path, rng)
    broken = tmp_path / ADE20K / "annotations/training/ADE_train_00000002.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(SystemExit, match=r"ADE_train_00000002\.png cannot be read"):
        run_here(sem_seg, monkeypatch, tmp_path)
    save(broken, np.zeros((4, 4, 3)))
    with pytest.raises(SystemExit, match=r"ADE_train_00000002\.png has 3 channel"):
        run_here(sem_seg, monkeypatch, tmp_path)


# ADE20K, panoptic


def panoptic_ids(colors: np.ndarray) -> np.ndarray:
    return colors.astype(int) @ (1, 256, 65536)


def test_instances_are_painted_over_stuff_and_the_rest_is_void():
    # Semantic labels are from 1: 1 wall and 3 sky are stuff, 8 bed is a thing. Instance category 1 is bed.
    semantic = np.array([[1, 1, 1, 3, 8], [1, 1, 1, 3, 8], [0, 0, 8, 8, 8]])
    instance = np.zeros((3, 5, 3), dtype=np.uint8)
    instance[0:2, 2:4] = (1, 1, 99)
    ids, segments = pan_seg.convert(semantic.astype(np.uint8), instance)

    wall, bed = 120 + 256 * 120 + 65536 * 120, 204 + 256 * 5 + 65536 * 255  # the classes' own colours
    assert panoptic_ids(ids).tolist() == [[wall, wall, bed, bed, 0]] * 2 + [[0] * 5]
    assert segments == [
        # Wall without what the bed covers; sky, wholly covered, is gone.
        {"id": wall, "category_id": 0, "area": 4, "bbox": [0, 0, 2, 2], "iscrowd": 0},
        {"id": bed, "category_id": 7, "area": 4, "bbox": [2, 0, 2, 2], "iscrowd": 0},
    ]


def test_segments_tell_exactly_what_is_painted(rng):
    semantic = rng.integers(0, 151, (23, 31)).astype(np.uint8)
    instance = np.zeros((23, 31, 3), dtype=np.uint8)
    instance[..., 0] = rng.integers(0, 101, (23, 31)) * (rng.random((23, 31)) < 0.3)
    instance[..., 1] = rng.integers(1, 4, (23, 31))
    colors, segments = pan_seg.convert(semantic, instance)
    ids = panoptic_ids(colors)
    things = [entry["id"] for entry in load_classes("ade20k_150") if entry["isthing"]]
    category = {segment["id"]: segment["category_id"] for segment in segments}

    assert len(category) == len(segments)
    seen: dict[int, set] = {}
    for y in range(23):
        for x in range(31):
            if instance[y, x, 0]:
                expected = (things[instance[y, x, 0] - 1], instance[y, x, 1])
            elif semantic[y, x] and semantic[y, x] - 1 not in things:
                expected = (semantic[y, x] - 1, 0)
            else:
                assert ids[y, x] == 0
                continue
            assert category[ids[y, x]] == expected[0]
            seen.setdefault(ids[y, x], set()).add(tuple(int(part) for part in expected))
    assert all(len(segment) == 1 for segment in seen.values())
    assert seen.keys() == category.keys()
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        left, top, width, height = segment["bbox"]
        assert segment["area"] == len(rows)
        assert (left, left + width - 1) == (columns.min(), columns.max())
        assert (top, top + height - 1) == (rows.min(), rows.max())


def test_250_instances_of_one_class_get_different_colors_near_its_own():
    numbers = np.arange(1, 251).reshape(10, 25)
    instance = np.stack([np.full_like(numbers, 9), numbers, numbers], axis=-1).astype(np.uint8)
    colors, segments = pan_seg.convert(np.zeros((10, 25), dtype=np.uint8), instance)
    assert len({segment["id"] for segment in segments}) == 250
    car = np.array([0, 102, 200])  # the ninth thing
    assert {segment["category_id"] for segment in segments} == {20}
    assert np.abs(colors.astype(int) - car).max() <= 30


def test_picture_without_labels_is_all_void():
    ids, segments = pan_seg.convert(np.zeros((2, 3), dtype=np.uint8), np.zeros((2, 3, 3), dtype=np.uint8))
    assert not ids.any()
    assert segments == []


@pytest.mark.parametrize(
    ("semantic", "instance", "words"),
    [(0, (101, 1, 0), "category 101"), (151, (0, 0, 0), "label 151")],
)
def test_panoptic_labels_out_of_range_are_refused(semantic, instance, words):
    pair = np.full((2, 2), semantic, dtype=np.uint8), np.full((2, 2, 3), instance, dtype=np.uint8)
    with pytest.raises(ValueError, match=words):
        pan_seg.convert(*pair)


def test_instance_categories_are_the_things_in_order():
    # Places in the list of the instance challenge, from 1, and names, as that challenge publishes them.
    published = {1: "bed", 4: "person", 31: "stairs", 58: "tv", 78: "step, stair", 95: "monitor", 100: "flag"}
    names = [entry["name"] for entry in load_classes("ade20k_150")]
    assert {place: names[pan_seg.THINGS[place - 1]] for place in published} == published


def test_ade20k_panoptic_program_writes_what_registration_reads(registered, rng):
    labels = ade20k_tree(registered, rng)
    ended = run("prepare_ade20k_pan_seg", registered, "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    for split, folder in (
        ("training", "annotations_detectron2/training"),
        ("validation", "annotations_detectron2/validation"),
    ):
        for path in (registered / ADE20K / "annotations" / split).glob("*.png"):
            save(registered / ADE20K / folder / path.name, sem_seg.convert(read(path)))

    content = json.loads((registered / ADE20K / "ade20k_panoptic_train.json").read_text())
    assert [image["id"] for image in content["images"]] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert content["images"][0] == {
        "id": "ADE_train_00000001", "file_name": "ADE_train_00000001.jpg", "width": 13, "height": 9,
    }  # fmt: skip
    assert {key: content["categories"][7][key] for key in ("id", "name", "isthing", "color")} == {
        "id": 7, "name": "bed", "isthing": 1, "color": [204, 5, 255],
    }  # fmt: skip
    assert not list((registered / ADE20K).glob("*.parts"))

    samples = DatasetCatalog.get("ade20k_panoptic_train") + DatasetCatalog.get("ade20k_panoptic_val")
    things = MetadataCatalog.get("ade20k_panoptic_val").thing_dataset_id_to_contiguous_id.values()
    for sample in samples:
        _, instance = labels[sample["image_id"]]
        persons = [s for s in sample["segments_info"] if s["category_id"] == 12]
        assert [s["area"] for s in persons if s["isthing"]] == [(instance[..., 1] == n).sum() for n in (1, 2)]
        assert all(s["isthing"] == (s["category_id"] in things) for s in sample["segments_info"])
        painted = panoptic_ids(read(Path(sample["pan_seg_file_name"])))
        assert set(np.unique(painted)) - {0} == {s["id"] for s in sample["segments_info"]}


def test_panoptic_output_is_the_same_byte_for_byte_and_after_a_break(monkeypatch, tmp_path, rng):
    ade20k_tree(tmp_path, rng)
    data = tmp_path / ADE20K

    def output() -> dict[str, bytes]:
        return {
            str(p): p.read_bytes()
            for p in sorted(data.glob("ade20k_panoptic_*/*")) + sorted(data.glob("*.json"))
        }

    run_here(pan_seg, monkeypatch, tmp_path)
    whole = output()
    assert len(whole) == 5
    run_here(pan_seg, monkeypatch, tmp_path, "--force")
    assert output() == whole

    # A run that breaks at its second picture leaves the first done, and no JSON.
    for path in whole:
        Path(path).unlink()
    broken = data / "annotations_instance/training/ADE_train_00000002.png"
    good = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(SystemExit, match="ADE_train_00000002"):
        run_here(pan_seg, monkeypatch, tmp_path)
    assert not (data / "ade20k_panoptic_train.json").exists()
    first = data / "ade20k_panoptic_train/ADE_train_00000001.png"
    written = first.stat().st_mtime_ns
    broken.write_bytes(good)
    run_here(pan_seg, monkeypatch, tmp_path)
    assert output() == whole
    assert first.stat().st_mtime_ns == written


def test_missing_instance_labels_are_reported_by_path(monkeypatch, tmp_path, rng):
    ade20k_tree(tmp_path, rng)
    (tmp_path / ADE20K / "annotations_instance/training/ADE_train_00000001.png").unlink()
    with pytest.raises(
        SystemExit, match=r"ADE_train_00000001\.png does not exist.*annotations_instance\.tar"
    ):
        run_here(pan_seg, monkeypatch, tmp_path)


# ADE20K-Full


def full_object_names() -> tuple[list[str], list[int]]:
    """Return object names like those of the index, and the ids (places from 1) of the 847 classes in them."""
    classes = load_classes("ade20k_full_847")
    ids = [entry.get("id") for entry in classes]
    free = (i for i in [6, 3156, *range(7, 3156)] if i not in ids)
    ids = [next(free) if i is None else i for i in ids]
    names = [f"filler {i}" for i in range(1, 3689)]
    for entry, place in zip(classes, ids, strict=True):
        names[place - 1] = entry["name"]
    return names, ids


def test_full_class_is_tens_of_red_times_256_plus_green():
    lookup = full.class_lookup([2978, 312, 2420])  # wall, building, sky
    colors = np.array(
        [[[119, 162, 3], [110, 162, 0], [10, 56, 9]], [[90, 116, 1], [90, 117, 1], [255, 255, 0]]]
    )
    assert full.convert(colors.astype(np.uint8), lookup).tolist() == [[0, 0, 1], [2, 65535, 65535]]


def test_full_names_are_found_whatever_their_case_and_punctuation():
    names, ids = full_object_names()
    place = names.index("air conditioner, air conditioning")
    names[place] = "Air Conditioner,  air-conditioning"
    assert full.resolve_ids(names, load_classes("ade20k_full_847")) == ids


def test_full_index_without_a_class_is_refused_with_the_nearest_name():
    names, _ = full_object_names()
    names[names.index("typewriter")] = "typewritter"
    with pytest.raises(ValueError, match=r"no object 'typewriter'; the nearest is \['typewritter'\]"):
        full.resolve_ids(names, load_classes("ade20k_full_847"))


def test_full_index_of_another_release_is_refused():
    names, _ = full_object_names()
    with pytest.raises(ValueError, match=r"object 'wall' at \[2979\], the class table wants 2978"):
        full.resolve_ids(["one more", *names], load_classes("ade20k_full_847"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 700), (512, 700)),
        ((300, 900), (300, 900)),
        ((1024, 1366), (512, 683)),
        ((2000, 513), (1996, 512)),
    ],
)
def test_full_short_side_comes_down_to_512(size, expected):
    assert full.target_size(*size) == expected


def test_full_program_writes_what_registration_reads(registered, rng):
    names, ids = full_object_names()
    classes, pictures = {}, [("training/urban/street", "ADE_train_00000009", (40, 52))]
    pictures += [
        ("validation/home/attic", "ADE_val_00000004", (1024, 1040)),
        ("training/a", "ADE_frame_00000002", (8, 9)),
    ]
    for folder, stem, size in pictures:
        # Blocks of 8 pixels, so that halving the size keeps one of every four values exactly.
        coarse = rng.integers(-1, 847, (size[0] // 8, -(-size[1] // 8)))
        classes[stem] = coarse.repeat(8, 0).repeat(8, 1)[:, : size[1]]
        full_id = np.where(classes[stem] < 0, 3600, np.array(ids)[classes[stem]])
        colors = np.stack(
            [full_id // 256 * 10 + rng.integers(0, 10, size), full_id % 256, np.zeros(size)], axis=-1
        )
        path = registered / ADE20K_FULL / "images/ADE" / folder
        save(path / f"{stem}.jpg", np.full((*size, 3), 90))
        save(path / f"{stem}_seg.png", colors)
    index = {
        "filename": [f"{stem}.jpg" for _, stem, _ in pictures],
        "folder": np.array([f"{ADE20K_FULL}/images/ADE/{folder}" for folder, _, _ in pictures], dtype=object),
        "objectnames": names,
        "objectPresence": np.ones((4, 3)),
        "description": {"filename": "file names"},
    }
    (registered / ADE20K_FULL / "index_ade20k.pkl").write_bytes(pickle.dumps(index))

    ended = run("prepare_ade20k_full_sem_seg", registered, "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    train, val = (DatasetCatalog.get(f"ade20k_full_sem_seg_{split}") for split in ("train", "val"))
    assert [Path(s["file_name"]).stem for s in train] == ["ADE_frame_00000002", "ADE_train_00000009"]
    for sample in train:
        labels = read(Path(sample["sem_seg_file_name"]))
        expected = classes[Path(sample["file_name"]).stem]
        assert labels.dtype == np.uint16
        assert np.array_equal(labels, np.where(expected < 0, 65535, expected))
        assert read(Path(sample["file_name"])).shape == (*expected.shape, 3)
    (sample,) = val
    expected = classes["ADE_val_00000004"][::2, ::2]
    assert np.array_equal(read(Path(sample["sem_seg_file_name"])), np.where(expected < 0, 65535, expected))
    assert cv2.imread(sample["file_name"]).shape == (512, 520, 3)


# COCO-Stuff 10K


def test_coco_stuff_is_transposed_and_both_empty_values_become_255():
    matrix = np.array([[1, 0], [2, 3], [81, 172]], dtype=np.uint8)  # three columns of two rows
    converted = coco_stuff.convert(matrix)
    assert converted.tolist() == [[255, 0, 79], [255, 1, 170]]
    assert converted.dtype == np.uint8


@pytest.mark.parametrize("value", [173, -1, 2.5])
def test_coco_stuff_label_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=f"label {value}"):
        coco_stuff.convert(np.array([[2, value]]))


def coco_stuff_tree(root: Path, rng) -> dict[str, np.ndarray]:
    data, labels = root / "coco/coco_stuff_10k", {}
    (data / "imageLists").mkdir(parents=True)
    (data / "annotations").mkdir()
    for split, number in (("train", 77), ("test", 1453), ("test", 285)):
        stem = f"COCO_train2014_{number:012d}"
        labels[stem] = rng.integers(1, 173, (6, 10))
        save(data / f"images/{stem}.jpg", rng.integers(0, 256, (6, 10, 3)))
        with h5py.File(data / f"annotations/{stem}.mat", "w") as file:
            file["S"] = labels[stem].T.astype(np.uint8)
        with open(data / f"imageLists/{split}.txt", "a") as file:
            file.write(stem + "\n")
    return labels


def test_coco_stuff_program_writes_what_registration_reads(registered, rng):
    labels = coco_stuff_tree(registered, rng)
    ended = run("prepare_coco_stuff_10k_v1.0_sem_seg", registered, "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    samples = [
        s for split in ("train", "test") for s in DatasetCatalog.get(f"coco_2017_{split}_stuff_10k_sem_seg")
    ]
    assert len(samples) == 3
    for sample in samples:
        stem = Path(sample["file_name"]).stem
        source = registered / f"coco/coco_stuff_10k/images/{stem}.jpg"
        assert Path(sample["file_name"]).read_bytes() == source.read_bytes()
        expected = [[255 if value == 1 else value - 2 for value in row] for row in labels[stem].tolist()]
        assert read(Path(sample["sem_seg_file_name"])).tolist() == expected


def test_coco_stuff_without_h5py_says_what_to_install(monkeypatch, tmp_path, rng):
    coco_stuff_tree(tmp_path, rng)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit, match="pip install h5py"):
        run_here(coco_stuff, monkeypatch, tmp_path)


def test_coco_stuff_file_that_is_not_hdf5_is_named(monkeypatch, tmp_path, rng):
    coco_stuff_tree(tmp_path, rng)
    (tmp_path / "coco/coco_stuff_10k/annotations/COCO_train2014_000000000077.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(SystemExit, match=r"000000000077\.mat is not an HDF5 file"):
        run_here(coco_stuff, monkeypatch, tmp_path)


# What the programs share


def double(job) -> None:
    job.targets[0].write_text(job.sources[0].read_text() * 2)


def doubling_jobs(folder: Path, texts: str) -> list:
    jobs = []
    for i, text in enumerate(texts):
        (folder / f"{i}.in").write_text(text)
        jobs.append(prepare.Job((folder / f"{i}.in",), (folder / f"out/{i}.out",)))
    return jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_only_jobs_that_are_not_done_are_done_unless_forced(tmp_path, workers):
    jobs = doubling_jobs(tmp_path, "abc")
    (tmp_path / "out").mkdir()
    jobs[1].targets[0].write_text("done before")
    assert prepare.run_jobs(double, jobs, workers) == 2
    assert [job.targets[0].read_text() for job in jobs] == ["aa", "done before", "cc"]
    assert prepare.run_jobs(double, jobs, workers) == 0
    assert prepare.run_jobs(double, jobs, workers, force=True) == 3
    assert jobs[1].targets[0].read_text() == "bb"


@pytest.mark.parametrize("workers", [1, 2])
def test_error_in_a_job_ends_the_loop_with_its_message(tmp_path, workers):
    jobs = doubling_jobs(tmp_path, "abc")
    jobs[0].sources[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.in"):
        prepare.run_jobs(double, jobs, workers)
    assert not jobs[0].targets[0].exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_that_would_run_something_is_refused_unrun(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "index.pkl"
    path.write_bytes(pickle.dumps({"filename": [Hostile(victim)]}))
    with pytest.raises(ValueError, match=r"index\.pkl .*open"):
        prepare.read_plain_pickle(path)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickle_of_plain_values_and_arrays_is_read(tmp_path, protocol):
    content = {
        "counts": np.arange(6.0).reshape(2, 3),
        "names": np.array(["a", "b"], dtype=object),
        "nested": [{"x": (1, None)}, {2}, b"bytes", np.float64(3.5)],
    }
    path = tmp_path / "index.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = prepare.read_plain_pickle(path)
    assert np.array_equal(found["counts"], content["counts"])
    assert found["names"].tolist() == ["a", "b"]
    assert found["nested"] == content["nested"]


def test_pickle_written_with_numpy_1_is_read(tmp_path):
    written = pickle.dumps(np.arange(3), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in written
    (tmp_path / "index.pkl").write_bytes(written)
    assert prepare.read_plain_pickle(tmp_path / "index.pkl").tolist() == [0, 1, 2]


def test_root_comes_from_the_environment_with_the_home_folder_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    assert prepare.argument_parser("").parse_args([]).root == tmp_path / "sets"
    assert prepare.argument_parser("").parse_args(["--root", "~/other"]).root == tmp_path / "other"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert prepare.argument_parser("").parse_args([]).root == Path("datasets")
