"""The zoo against the published tables, and fetching its weights from a server on this machine."""

import hashlib
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch

import mask_former  # noqa: F401  (registers models and data sets)
from mask_former import config, model_zoo
from mask_former.prediction.predictor import Predictor

# Short name, group of the weights, stem of the configuration, hash, score, score with scales and flips.
PUBLISHED = """
per_pixel_baseline_R50_ade20k semantic-ade20k per_pixel_baseline_R50_bs16_160k 1043f3 39.2 40.9
per_pixel_baseline_plus_R50_ade20k semantic-ade20k per_pixel_baseline_plus_R50_bs16_160k 833630 41.9 42.9
maskformer_R50_ade20k semantic-ade20k maskformer_R50_bs16_160k d8dbeb 44.5 46.7
maskformer_R101_ade20k semantic-ade20k maskformer_R101_bs16_160k 1aeb94 45.5 47.2
maskformer_R101c_ade20k semantic-ade20k maskformer_R101c_bs16_160k b432ea 46.0 48.1
maskformer_swin_tiny_ade20k semantic-ade20k maskformer_swin_tiny_bs16_160k 8657a5 46.7 48.8
maskformer_swin_small_ade20k semantic-ade20k maskformer_swin_small_bs16_160k 528157 49.8 51.0
maskformer_swin_base_ade20k semantic-ade20k maskformer_swin_base_IN21k_384_bs16_160k_res640 45388b 52.7 53.9
maskformer_swin_large_ade20k semantic-ade20k maskformer_swin_large_IN21k_384_bs16_160k_res640 aefa3b 54.1 55.6
per_pixel_baseline_R50_coco_stuff_10k semantic-coco-stuff-10k per_pixel_baseline_R50_bs32_60k 275ab0 32.4 34.4
per_pixel_baseline_plus_R50_coco_stuff_10k semantic-coco-stuff-10k per_pixel_baseline_plus_R50_bs32_60k 1fa920 34.2 35.8
maskformer_R50_coco_stuff_10k semantic-coco-stuff-10k maskformer_R50_bs32_60k cb03eb 37.1 38.9
maskformer_R101_coco_stuff_10k semantic-coco-stuff-10k maskformer_R101_bs32_60k eb19bb 38.1 39.8
maskformer_R101c_coco_stuff_10k semantic-coco-stuff-10k maskformer_R101c_bs32_60k bffd25 38.0 39.3
per_pixel_baseline_R50_ade20k_full semantic-ade20k-full per_pixel_baseline_R50_bs16_200k 9f66a9 12.4 -
per_pixel_baseline_plus_R50_ade20k_full semantic-ade20k-full per_pixel_baseline_plus_R50_bs16_200k 4d31f2 13.9 -
maskformer_R50_ade20k_full semantic-ade20k-full maskformer_R50_bs16_200k f4e3f6 16.0 -
maskformer_R101_ade20k_full semantic-ade20k-full maskformer_R101_bs16_200k 88df33 16.8 -
maskformer_R101c_ade20k_full semantic-ade20k-full maskformer_R101c_bs16_200k 75d34e 17.4 -
maskformer_R101_cityscapes semantic-cityscapes maskformer_R101_bs16_90k 38c00c 78.5 80.3
maskformer_R101c_cityscapes semantic-cityscapes maskformer_R101c_bs16_90k 4f8ff9 79.7 81.4
maskformer_R50_mapillary semantic-mapillary-vistas maskformer_R50_bs16_300k f3fc73 53.1 55.4
maskformer_panoptic_R50_coco panoptic-coco maskformer_panoptic_R50_bs64_554k 6f60dc 46.5 -
maskformer_panoptic_R101_coco panoptic-coco maskformer_panoptic_R101_bs64_554k 57b049 47.6 -
maskformer_panoptic_swin_tiny_coco panoptic-coco maskformer_panoptic_swin_tiny_bs64_554k 539394 47.7 -
maskformer_panoptic_swin_small_coco panoptic-coco maskformer_panoptic_swin_small_bs64_554k 5bf6b1 49.7 -
maskformer_panoptic_swin_base_coco panoptic-coco maskformer_panoptic_swin_base_IN21k_384_bs64_554k 4b7f49 51.8 -
maskformer_panoptic_swin_large_coco panoptic-coco maskformer_panoptic_swin_large_IN21k_384_bs64_554k 7505c4 52.7 -
maskformer_panoptic_R50_ade20k panoptic-ade20k maskformer_panoptic_R50_bs16_720k 7aa977 34.7 -
maskformer_panoptic_R101_ade20k panoptic-ade20k maskformer_panoptic_R101_bs16_720k 0b3cc8 35.7 -
"""  # noqa: E501
ROWS = [line.split() for line in PUBLISHED.strip().splitlines()]
CLASSES = {
    "ade20k": 150,
    "coco_stuff_10k": 171,
    "ade20k_full": 847,
    "cityscapes": 19,
    "mapillary": 65,
    "coco": 133,
}


def test_zoo_is_the_published_table():
    expected = []
    for name, group, stem, digits, score, tta in ROWS:
        url = f"https://dl.fbaipublicfiles.com/maskformer/{group}/{stem}/model_final_{digits}.pkl"
        metric = "PQ" if "panoptic" in group else "mIoU"
        expected.append((name, url, digits, metric, float(score), None if tta == "-" else float(tta)))
    found = [(e.name, e.url, e.hash_prefix, e.metric, e.score, e.score_tta) for e in model_zoo.entries()]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_model_builds_with_the_classes_of_its_data_set(row):
    with torch.device("meta"):  # shapes without memory
        model = model_zoo.get(row[0], device="meta")
    dataset = next(name for name in sorted(CLASSES, key=len, reverse=True) if row[0].endswith(name))
    assert model.sem_seg_head.num_classes == CLASSES[dataset]
    if "swin" not in row[0]:
        blocks = 6 if "R50" in row[0] else 23
        assert len(model.backbone.res4) == blocks


@pytest.mark.parametrize(
    "name",
    [
        "maskformer_R50_mapillary",
        "mapillary-vistas-65/maskformer_R50_bs16_300k",
        "configs/mapillary-vistas-65/maskformer_R50_bs16_300k.yaml",
        "maskformer_R50_bs16_300k",
    ],
)
def test_model_goes_by_short_name_and_configuration(name):
    assert model_zoo.find(name).hash_prefix == "f3fc73"


def test_unknown_name_is_answered_with_near_ones():
    with pytest.raises(
        ValueError, match=r"'maskformer_r50_ade' is not in the zoo; did you mean maskformer_R50_ade20k"
    ):
        model_zoo.get_config("maskformer_r50_ade")


def test_configuration_takes_the_users_number_of_classes():
    assert model_zoo.get_config("maskformer_R50_ade20k", num_classes=21).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 21
    plus = model_zoo.get_config("per_pixel_baseline_plus_R50_ade20k", num_classes=21)
    assert plus.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 21
    with pytest.raises(ValueError, match="num_classes is 0"):
        model_zoo.get_config("maskformer_R50_ade20k", num_classes=0)


def test_panoptic_model_takes_the_users_things():
    with torch.device("meta"):
        model = model_zoo.get("maskformer_panoptic_R50_coco", num_classes=3, thing_ids=[0, 2], device="meta")
    assert model.rules.thing_ids == {0, 2}
    assert model.sem_seg_head.predictor.class_embed.out_features == 4


def test_configurations_are_found_in_an_installed_package(tmp_path, monkeypatch):
    folder = tmp_path / "cityscapes-19"
    folder.mkdir()
    (folder / "maskformer_R101_bs16_90k.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr(config, "CONFIG_FOLDERS", (tmp_path, *config.CONFIG_FOLDERS))
    assert model_zoo.config_file("maskformer_R101_cityscapes").parent == folder
    assert model_zoo.config_file("maskformer_R101c_cityscapes").is_file()


def test_table_lists_every_model_with_its_score_and_the_licence():
    lines = model_zoo.list().splitlines()
    for name, _, _, _, score, _ in ROWS:
        (line,) = [line for line in lines if line.split()[0] == name]
        assert score in line.split()
    assert "CC BY-NC 4.0" in lines[-1]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with weights of one model: the queries of maskformer_R50_ade20k alone.

    Gives the server, the queries and the file.
    """
    queries = np.random.default_rng(0).normal(size=(100, 256)).astype(np.float32)
    data = pickle.dumps(
        {"model": {"sem_seg_head.predictor.query_embed.weight": queries}, "__author__": "test"}
    )
    digits = hashlib.md5(data).hexdigest()[:6]
    (section,) = [part for part in model_zoo._MODELS if "semantic-ade20k" in part]
    row = ("maskformer_R50_bs16_160k", digits, 44.5, 46.7)
    file = tmp_path / "www" / "semantic-ade20k" / row[0] / f"model_final_{digits}.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    handler = partial(QuietHandler, directory=str(tmp_path / "www"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(model_zoo, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(model_zoo, "_MODELS", {section: (row,)})
    monkeypatch.setattr(model_zoo, "_licence_logged", False)
    monkeypatch.setenv("MASK_FORMER_CACHE", str(tmp_path / "cache"))
    yield server, queries, file
    server.shutdown()
    server.server_close()


def test_trained_model_has_the_published_weights(published):
    model = model_zoo.get("maskformer_R50_ade20k", trained=True, device="cpu")
    assert np.array_equal(model.sem_seg_head.predictor.query_embed.weight.detach().numpy(), published[1])


def test_fetched_weights_are_there_without_network(published):
    server, _, _ = published
    file = model_zoo.weights_file("maskformer_R50_ade20k")
    server.shutdown()
    server.server_close()
    assert model_zoo.weights_file("maskformer_R50_ade20k") == file


def test_no_network_is_one_line_that_says_where_to_put_the_file(published, tmp_path):
    server, _, _ = published
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"model_final_.*put the file at .*cache") as raised:
        model_zoo.weights_file("maskformer_R50_ade20k")
    assert "\n" not in str(raised.value)


def test_file_with_another_hash_is_refused(published):
    published[2].write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"md5.*expected"):
        model_zoo.weights_file("maskformer_R50_ade20k")


def test_licence_of_the_weights_is_told_once(published, caplog):
    for _ in range(2):
        model_zoo.weights_file("maskformer_R50_ade20k")
    assert sum("CC BY-NC 4.0" in record.message for record in caplog.records) == 1


def test_predictor_takes_a_name_of_the_zoo(published):
    predictor = Predictor.from_zoo("maskformer_R50_ade20k", device="cpu")
    found = predictor.model.sem_seg_head.predictor.query_embed.weight.detach().numpy()
    assert np.array_equal(found, published[1])
    assert predictor.classes.names[:3] == ("wall", "building", "sky")
    assert predictor.classes.indices_of("route") == {6}
