"""Predictor: from files and arrays to results, by thresholds and filters, alone and in batches."""

import os
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from small_predictors import NAMES, THINGS, decided_model, picture, small_config, write_checkpoint
from tiny_models import NUM_CLASSES, NUM_QUERIES
from torch.nn import functional as F
from video_files import VideoWriter

from mask_former.prediction import inputs
from mask_former.prediction.inputs import PictureError, load_all
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.video import VideoReader

SIZES = [(70, 90), (64, 64), (90, 70), (70, 90), (61, 160)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return [picture(*size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("b.png", "a.png", "c.PNG")):
        Image.fromarray(picture(64, 80, seed)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "below.png").mkdir()
    return tmp_path


def test_checkpoint_alone_says_what_the_classes_are(predictor):
    assert predictor.classes.names == tuple(NAMES)
    assert predictor.classes.things == set(THINGS)
    assert predictor.classes.colors[1] == (30, 30, 200)
    assert predictor.classes.void_label == 255


def test_results_are_those_of_the_model(predictor, pictures):
    for pixels in pictures:
        height, width = pixels.shape[:2]
        scale = min(64 / min(height, width), 160 / max(height, width))
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
        resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        image = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        with torch.no_grad():
            expected = predictor.model([{"image": image, "height": height, "width": width}])[0]
        (result,) = predictor(pixels, return_scores=True)
        assert (result.height, result.width) == (height, width)
        assert np.array_equal(result.semantic, expected["sem_seg"].argmax(0).numpy())
        assert torch.allclose(result.scores, expected["sem_seg"], atol=1e-5)
        panoptic_map, infos = expected["panoptic_seg"]
        assert np.array_equal(result.panoptic, panoptic_map.numpy())
        assert [s.id for s in result.segments] == [info["id"] for info in infos]
        assert [s.category_id for s in result.segments] == [info["category_id"] for info in infos]
        assert [s.area for s in result.segments] == [
            int((panoptic_map == info["id"]).sum()) for info in infos
        ]
        assert np.array_equal(result.instances.masks, expected["instances"].pred_masks.numpy())
        assert np.allclose(result.instances.scores, expected["instances"].scores.numpy(), atol=1e-6)


def test_segments_carry_name_and_box_of_their_pixels(predictor, pictures):
    (result,) = predictor(pictures[0])
    assert len(result.segments) > 1
    for segment in result.segments:
        ys, xs = np.nonzero(result.panoptic == segment.id)
        assert segment.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert segment.name == NAMES[segment.category_id]
        assert segment.is_thing == (segment.category_id in THINGS)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_picture_has_the_same_result_alone_and_in_any_batch(predictor, pictures, batch_size):
    alone = [predictor(pixels, return_scores=True)[0] for pixels in pictures]
    assert sum(len(np.unique(result.panoptic)) for result in alone) > len(pictures), "too easy a model"
    together = predictor(pictures, batch_size=batch_size, return_scores=True)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.semantic, other.semantic)
        assert np.array_equal(one.panoptic, other.panoptic)
        assert np.array_equal(one.instances.classes, other.instances.classes)
        assert torch.allclose(one.scores, other.scores, rtol=0, atol=1e-5)
        assert np.allclose(
            [s.score for s in one.segments], [s.score for s in other.segments], rtol=0, atol=1e-5
        )
        assert np.allclose(one.instances.scores, other.instances.scores, rtol=0, atol=1e-5)


def test_pictures_that_are_padded_alike_share_a_batch(predictor, pictures, monkeypatch):
    batches = []
    predict = predictor.model.predict
    monkeypatch.setattr(predictor.model, "predict", lambda x: batches.append(tuple(x.shape)) or predict(x))
    predictor(pictures, batch_size=4)
    # 70x90 becomes 64x82, padded to 64x96; twice. 90x70 stands upright, 61x160 stays below 64x160.
    assert sorted(batches) == [(1, 3, 64, 64), (1, 3, 64, 160), (1, 3, 96, 64), (2, 3, 64, 96)]


def test_folder_gives_its_pictures_in_order_of_name(predictor, folder):
    names = [os.path.basename(result.image_name) for result in predictor(folder, batch_size=2)]
    assert names == ["a.png", "b.png", "c.PNG"]


def test_list_may_mix_patterns_paths_and_arrays(predictor, folder):
    results = predictor([str(folder / "[ab].png"), folder / "c.PNG", picture(64, 80, 0)])
    names = [os.path.basename(result.image_name) for result in results]
    assert names == ["a.png", "b.png", "c.PNG", "array_000003"]
    assert np.array_equal(results[1].semantic, results[3].semantic), "array and file of one picture differ"


def test_stream_reads_no_further_than_it_must(predictor):
    taken = []

    def camera():
        for number in range(100):
            taken.append(number)
            yield picture(64, 64, number)

    stream = predictor.stream(camera())
    next(stream)
    assert taken == [0]


def test_bgr_model_sees_blue_first(tmp_path, predictor, pictures):
    cfg = small_config()
    cfg.INPUT.FORMAT = "BGR"
    other = Predictor.from_checkpoint(write_checkpoint(tmp_path, cfg), device="cpu")
    expected = predictor(pictures[0][:, :, ::-1].copy(), return_scores=True)[0]
    assert torch.equal(other(pictures[0], return_scores=True)[0].scores, expected.scores)


def test_score_threshold_drops_segments_and_instances(checkpoint, predictor, pictures):
    (usual,) = predictor(pictures[0])
    of_segments = [segment.score for segment in usual.segments]
    for scores in (of_segments, usual.instances.scores.tolist()):
        threshold = (min(scores) + max(scores)) / 2
        strict = Predictor.from_checkpoint(checkpoint, device="cpu", score_threshold=threshold)
        (result,) = strict(pictures[0])
        assert all(segment.score > threshold for segment in result.segments)
        expected = [score for score in usual.instances.scores if score > threshold]
        assert np.allclose(result.instances.scores, expected)
        if scores is of_segments:
            assert 0 < len(result.segments) < len(usual.segments)
        else:
            assert 0 < len(expected) < len(usual.instances)


def test_mask_threshold_is_the_probability_where_masks_begin(checkpoint, pictures):
    pixels = pictures[1]
    for threshold in (0.2, 0.9):
        predictor = Predictor.from_checkpoint(checkpoint, device="cpu", mask_threshold=threshold, top_k=500)
        (result,) = predictor(pixels, return_logits=True)
        probs = F.interpolate(result.logits.mask_logits[None], size=(64, 64), mode="bilinear")[0].sigmoid()
        expected = {mask.numpy().tobytes() for mask in probs > threshold if mask.any()}
        found = {mask.tobytes() for mask in result.instances.masks}
        assert found == expected


def test_overlap_threshold_drops_covered_segments(checkpoint, predictor, pictures):
    strict = Predictor.from_checkpoint(checkpoint, device="cpu", overlap_threshold=0.99)
    usual, result = (sum(len(r.segments) for r in p(pictures)) for p in (predictor, strict))
    assert result < usual


def test_top_k_limits_instances(checkpoint, predictor, pictures):
    few = Predictor.from_checkpoint(checkpoint, device="cpu", top_k=3)
    assert len(few(pictures[0])[0].instances) <= 3 < len(predictor(pictures[0])[0].instances)


def test_class_filter_makes_other_classes_void(checkpoint, predictor, pictures):
    (usual,) = predictor(pictures[0])
    index = int(usual.segments[0].category_id)
    for wanted in (NAMES[index], index, [NAMES[index].upper()]):
        (result,) = Predictor.from_checkpoint(checkpoint, device="cpu", classes=wanted)(pictures[0])
        assert np.array_equal(result.semantic, np.where(usual.semantic == index, index, 255))
        kept = [segment for segment in usual.segments if segment.category_id == index]
        assert result.segments == kept
        assert np.array_equal(
            result.panoptic, np.where(np.isin(usual.panoptic, [s.id for s in kept]), usual.panoptic, 0)
        )
        assert set(result.instances.classes) <= {index}


def test_class_goes_by_each_of_its_names(predictor):
    assert predictor.classes.indices_of(["auto", "Car", "sea"]) == {1, 4}


def test_unknown_class_is_refused_with_those_there_are(checkpoint):
    with pytest.raises(ValueError, match=r"No class 'gras'.*grass"):
        Predictor.from_checkpoint(checkpoint, device="cpu", classes=["gras"])


def test_output_size_is_that_of_all_maps(predictor, pictures):
    for result in predictor(pictures[:2], batch_size=2, output_size=(33, 50), return_scores=True):
        assert result.semantic.shape == result.panoptic.shape == (33, 50)
        assert result.instances.masks.shape[1:] == (33, 50)
        assert result.scores.shape == (NUM_CLASSES, 33, 50)


def test_scores_and_logits_come_on_request_only(predictor, pictures):
    (plain,) = predictor(pictures[0])
    assert plain.scores is None
    assert plain.logits is None
    (full,) = predictor(pictures[0], return_scores=True, return_logits=True)
    assert np.array_equal(full.scores.argmax(0).numpy(), full.semantic)
    assert full.logits.class_logits.shape == (NUM_QUERIES, NUM_CLASSES + 1)
    assert full.logits.mask_logits.shape == (NUM_QUERIES, 16, 24)  # a quarter of 64x96
    assert full.logits.sizes.image == (64, 82)


def test_top_k_queries_keeps_the_surest(predictor, pictures):
    (full,) = predictor(pictures[0], return_logits=True)
    (few,) = predictor(pictures[0], return_logits=True, top_k_queries=2)
    surest = full.logits.class_logits.softmax(1)[:, :-1].amax(1).argsort(descending=True)[:2].sort().values
    assert torch.equal(few.logits.class_logits, full.logits.class_logits[surest])
    assert torch.equal(few.logits.mask_logits, full.logits.mask_logits[surest])
    assert len(few.segments) <= 2
    (all_of_them,) = predictor(pictures[0], top_k_queries=NUM_QUERIES)
    assert np.array_equal(all_of_them.semantic, full.semantic)


def test_tasks_choose_what_is_computed(checkpoint, pictures):
    (result,) = Predictor.from_checkpoint(checkpoint, device="cpu", tasks=["panoptic"])(pictures[0])
    assert result.panoptic is not None
    assert result.semantic is None
    assert result.instances is None
    with pytest.raises(ValueError, match=r"choose one or more of semantic, panoptic, instance"):
        Predictor.from_checkpoint(checkpoint, device="cpu", tasks=["boxes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, r"score_threshold is 1\.5"),
        ({"mask_threshold": 0.0}, r"mask_threshold is 0\.0"),
        ({"overlap_threshold": -1}, r"overlap_threshold is -1"),
        ({"top_k": 0}, r"top_k is 0"),
        ({"precision": "float8"}, r"float8.*expected one of"),
        ({"device": "cuda:77"}, r"cuda:77.*device='cpu'"),
    ],
)
def test_impossible_options_are_refused(checkpoint, options, message):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("needs a machine without GPU")
    with pytest.raises(ValueError, match=message):
        Predictor.from_checkpoint(checkpoint, **options)


@pytest.mark.parametrize(("precision", "same"), [("float32", 0.999), ("bfloat16", 0.9), ("auto", 0.9)])
def test_a_prepared_network_says_the_same(checkpoint, predictor, pictures, precision, same):
    fast = Predictor.from_checkpoint(checkpoint, device="cpu", precision=precision)
    for plain, quick in zip(predictor(pictures), fast(pictures), strict=True):
        assert np.mean(plain.semantic == quick.semantic) >= same
        assert np.mean(plain.panoptic == quick.panoptic) >= same


def test_configuration_in_a_checkpoint_can_be_overridden(checkpoint, pictures):
    opts = ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", False, "TEST.DETECTIONS_PER_IMAGE", 7]
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", opts=opts)
    assert predictor.rules.top_k == 7
    assert predictor(pictures[0])[0].instances is None


def test_weights_without_description_need_a_configuration(tmp_path, checkpoint, pictures):
    predictor = Predictor.from_checkpoint(checkpoint, precision="plain")
    state = {name: value.numpy() for name, value in predictor.model.state_dict().items()}
    file = tmp_path / "published.pkl"
    file.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    with pytest.raises(ValueError, match=r"published\.pkl holds weights only.*from_config"):
        Predictor.from_checkpoint(file)
    cfg = small_config()
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = True  # as panoptic models do
    plain = Predictor.from_config(cfg, file, device="cpu", precision="plain")
    assert plain.classes.names[:2] == ("class 0", "class 1")
    assert np.array_equal(plain(pictures[0])[0].semantic, predictor(pictures[0])[0].semantic)


def test_configuration_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        Predictor.from_config(small_config())


def test_dataset_ids_come_from_the_description(tmp_path):
    file = write_checkpoint(tmp_path, class_dataset_ids=[11, 12, 90, 91, 95])
    assert Predictor.from_checkpoint(file, device="cpu").classes.dataset_ids == (11, 12, 90, 91, 95)


def test_per_pixel_baseline_gives_semantic_results(pictures):
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    torch.manual_seed(0)
    from mask_former.prediction.classes import classes_of_dataset

    predictor = Predictor(build_model(cfg), cfg, classes_of_dataset(cfg))
    results = predictor(pictures, batch_size=3, return_scores=True)
    assert [result.semantic.shape for result in results] == SIZES
    assert results[0].panoptic is None
    assert torch.allclose(results[0].scores.sum(0), torch.ones(SIZES[0]), atol=1e-5)
    with pytest.raises(ValueError, match="no queries"):
        predictor(pictures, return_logits=True)


def test_model_at_hand_can_be_wrapped(predictor, pictures):
    model = decided_model(small_config())
    wrapped = Predictor(model, small_config(), predictor.classes, tasks=["semantic"])
    assert np.array_equal(wrapped(pictures[1])[0].semantic, predictor(pictures[1])[0].semantic)


def write_truncated(path):
    Image.fromarray(picture(80, 80)).save(path)
    path.write_bytes(path.read_bytes()[:200])


BAD_FILES = {
    "truncated.jpg": write_truncated,
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("this is no picture"),
    "strip.png": lambda path: Image.new("RGB", (20000, 50)).save(path),
    "missing.jpg": lambda path: None,
    "float.tif": lambda path: Image.new("F", (9, 9)).save(path),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named_and_the_others_are_predicted(predictor, folder, name):
    path = folder / name
    BAD_FILES[name](path)
    with pytest.raises(PictureError, match=name.replace(".", r"\.")) as raised:
        predictor(path)
    assert "\n" not in str(raised.value)
    told = []
    results = list(
        predictor.stream([folder / "a.png", path, folder / "b.png"], batch_size=2, on_error=told.append)
    )
    assert [os.path.basename(result.image_name) for result in results] == ["a.png", "b.png"]
    assert [error.picture for error in told] == [str(path)]


ODD_FILES = {
    "one_pixel.png": Image.new("RGB", (1, 1), "red"),
    "cmyk.jpg": Image.new("CMYK", (30, 40), (10, 200, 30, 0)),
    "grey16.png": Image.fromarray(np.full((40, 30), 40000, np.uint16)),
    "rgba.png": Image.new("RGBA", (30, 40), (200, 100, 0, 128)),
    "palette.gif": Image.new("P", (30, 40), 3),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_picture_is_predicted(predictor, tmp_path, name):
    ODD_FILES[name].save(tmp_path / name)
    (result,) = predictor(tmp_path / name)
    width, height = ODD_FILES[name].size
    assert result.semantic.shape == (height, width)
    assert result.image.shape == (height, width, 3)


def test_animated_picture_is_its_first_frame(predictor, tmp_path):
    frames = [Image.fromarray(picture(64, 70, seed)).quantize() for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(predictor(tmp_path / "moving.gif")[0].image, np.asarray(frames[0].convert("RGB")))


def test_turned_picture_is_upright(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(64, 90)).save(tmp_path / "turned.jpg", exif=exif)
    assert predictor(tmp_path / "turned.jpg")[0].semantic.shape == (90, 64)


def test_arrays_tensors_and_pictures_of_one_image_are_the_same(predictor):
    pixels = picture(64, 80)
    tensor = torch.from_numpy(pixels.copy())
    planes = tensor.permute(2, 0, 1)
    rgba = np.dstack([pixels, np.full((64, 80), 9, np.uint8)])
    images = [pixels, pixels / 255.0, pixels.transpose(2, 0, 1), rgba, Image.fromarray(pixels)]
    images += [tensor, planes, planes / 255, planes[None], Image.fromarray(rgba)]
    for image in load_all(images):
        assert np.array_equal(image.pixels, pixels), image.name
        assert image.pixels.dtype == np.uint8
    assert len(predictor(planes.expand(2, 3, 64, 80))) == 2
    names = [image.name for image in load_all([pixels, Image.fromarray(pixels)])]
    assert names == ["array_000000", "picture_000001"]


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30)])
def test_grey_array_has_three_equal_channels(shape):
    grey = picture(20, 30)[..., 0]
    for array in (grey.reshape(shape), torch.from_numpy(grey.reshape(shape) / 255.0)):
        (image,) = load_all(array)
        assert np.array_equal(image.pixels, np.dstack([grey] * 3))


def test_both_ends_of_a_shape_could_be_channels():
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    assert np.array_equal(next(load_all(array)).pixels, array)
    assert np.array_equal(next(load_all(torch.from_numpy(array))).pixels, array.transpose(1, 2, 0))


def test_picture_in_memory_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(64, 90)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        (image,) = load_all(opened)
    assert image.name == str(tmp_path / "turned.png")
    assert np.array_equal(image.pixels, np.rot90(picture(64, 90), -1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"got shape \(8, 8, 2\) and type uint8; expected \(H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \(0, 4, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "type int64.*uint8, or float from 0 to 1"),
        (np.full((8, 8, 3), 200.0), r"float values 200\.\.200; expected 0\.\.1"),
        (torch.full((3, 8, 8), float("nan")), "float values nan"),
    ],
)
def test_array_that_is_no_picture_is_refused(array, message):
    with pytest.raises(PictureError, match=f"array_000000.*{message}"):
        list(load_all(array))


@pytest.fixture
def server(tmp_path):
    """The address of an HTTP server for the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_address_is_fetched_and_a_bad_one_named(server, tmp_path, monkeypatch):
    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    (image,) = load_all(f"{server}/a.png")
    assert image.name == f"{server}/a.png"
    assert np.array_equal(image.pixels, picture(20, 30))
    told = []
    addresses = [f"{server}/missing.png", f"{server}/text.png", "http://127.0.0.1:1/a.png"]
    assert list(load_all(addresses, told.append)) == []
    assert [error.picture for error in told] == addresses
    assert "404" in str(told[0])
    assert not any("\n" in str(error) for error in told)
    monkeypatch.setattr(inputs, "MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(PictureError, match=r"a\.png: holds more than"):
        list(load_all(f"{server}/a.png"))


def test_frames_of_a_video_are_images(predictor, tmp_path):
    with VideoWriter(tmp_path / "walk.mp4", 80, 64, 25) as writer:
        for seed in range(3):
            writer.write(picture(64, 80, seed))
    with VideoReader(tmp_path / "walk.mp4") as reader:
        frames = list(reader)
    results = list(predictor.stream(tmp_path / "walk.mp4", batch_size=2))
    assert [result.image_name for result in results] == ["walk_000001", "walk_000002", "walk_000003"]
    assert all(np.array_equal(r.image, frame) for r, frame in zip(results, frames, strict=True))
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(PictureError, match=r"broken\.mp4 cannot be read as a video"):
        predictor(tmp_path / "broken.mp4")


def test_wrong_option_is_answered_with_the_nearest_name(checkpoint, predictor):
    with pytest.raises(TypeError, match=r"no option 'score_treshold'; did you mean 'score_threshold'\?"):
        Predictor.from_checkpoint(checkpoint, score_treshold=0.5)
    with pytest.raises(TypeError, match=r"no option 'batchsize'; did you mean 'batch_size'\?"):
        predictor(picture(64, 64), batchsize=2)
    with pytest.raises(TypeError, match="score_threshold is given when the predictor is made"):
        predictor(picture(64, 64), score_threshold=0.5)
    with pytest.raises(TypeError, match=r"no option 'topk'; did you mean 'top_k'\?"):
        predictor.with_rules(topk=3)


def test_predictor_is_shown_in_one_line(predictor):
    assert repr(predictor) == (
        "<Predictor: MaskFormer, build_resnet_backbone, 5 classes (circle, car, auto, sky, ...), "
        "semantic panoptic instance, cpu>"
    )


def test_nothing_found_is_an_error(predictor, tmp_path):
    with pytest.raises(PictureError, match="holds no pictures"):
        predictor(tmp_path)
    with pytest.raises(PictureError, match="pattern"):
        predictor(str(tmp_path / "*.jpg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_named(predictor, tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.raises(PictureError, match="secret"):
        predictor(tmp_path / "secret")
