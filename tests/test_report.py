"""The page about a run shows what the run has left, by itself, whatever lacks."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import run_page
from gallery import Scored, choose
from PIL import Image
from run_page import curve_figure, main, read_metrics, write_page
from video_files import VideoWriter


def picture(path, size=(31, 17), color=(200, 30, 90)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def run(tmp_path):
    """The folder of a short run, as training and the demo leave it."""
    folder = tmp_path / "a run & more"
    folder.mkdir()
    records = [
        {"iteration": 19, "total_loss": 8.5, "loss_ce": 2.0, "loss_mask": 1.5, "loss_dice": 1.0, "lr": 1e-4},
        {
            "iteration": 39,
            "total_loss": 4.25,
            "loss_ce": 1.0,
            "loss_mask": 0.5,
            "loss_dice": 0.75,
            "lr": 5e-5,
        },
        {"iteration": 40, "panoptic_seg/PQ": 61.234, "sem_seg/mIoU": 70.0, "segm/AP": float("nan")},
        {"iteration": 40, "panoptic_seg/PQ-star": 12.5, "panoptic_seg/PQ-t-shirt <x>": 87.5},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: MaskFormer, SEM_SEG_HEAD: {NUM_CLASSES: 11}}\n"
        "DATASETS: {TRAIN: [shapes_panoptic_train]}\nSOLVER: {MAX_ITER: 40, IMS_PER_BATCH: 8}\n"
    )
    for name in ("000001", "two_parts"):
        for panel in ("picture", "truth", "prediction"):
            picture(folder / "gallery" / f"{name}_{panel}.png")
    rows = [
        {"file": "000001", "title": "1.jpg", "group": "worst", "score": 12.34, "classes": ["<sky>", "sea"]},
        {"file": "two_parts", "title": "2.jpg", "group": "spread", "score": None, "classes": ["sea"]},
    ]
    mistakes = {"names": ["<sky>", "sea"], "confusion": [[90.0, 10.0], [0.1, 99.9]]}
    content = {"scored": 30, "metric": "PQ", "rows": rows, **mistakes}
    (folder / "gallery" / "gallery.json").write_text(json.dumps(content))
    start = {"command": "train_net.py --data 'a b'", "started": "2021-07-13T10:00:00+00:00"}
    start |= {"hardware": "One GPU", "version": "1.2.3", "commit": None, "seconds": 3725.4}
    (folder / "run.json").write_text(json.dumps([{**start, "seconds": None}, start]))
    with VideoWriter(folder / "moves.mp4", 64, 48, 12.0) as writer:
        for shade in range(5):
            writer.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    return folder


class Addresses(HTMLParser):
    """Collects everything that a browser would load, and the nesting of tags."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self):
        super().__init__()
        self.loaded, self.scripts, self.open, self.unbalanced = [], 0, [], []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        named = [value for key, value in attributes if key in ("src", "href", "data", "poster")]
        # A link is not loaded, nor is another part of the page.
        self.loaded += [value for value in named if tag != "a" and not value.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


def test_page_loads_nothing_and_is_well_formed(run):
    page = write_page(run).read_text()
    parser = Addresses()
    parser.feed(page)
    assert parser.scripts == 0
    assert len(parser.loaded) == 1 + 4 + 2 * 3 + 1  # icon, curves, two rows, video
    assert all(address.startswith("data:") for address in parser.loaded)
    assert "url(" not in page
    assert "@import" not in page
    assert (parser.open, parser.unbalanced) == ([], [])


def test_page_shows_scores_classes_curves_and_recipe(run):
    page = write_page(run).read_text()
    assert "<b>61.2</b>PQ" in page
    assert "<b>70.0</b>mIoU" in page
    assert "mask AP</th>" not in page  # it was NaN
    assert re.search(r"<td>t-shirt &lt;x&gt;</td>\s*<td>87\.5.*<td>star</td>\s*<td>12\.5", page, re.DOTALL)
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert "a run &amp; more: MaskFormer" in page
    assert "11 classes; trained on shapes_panoptic_train; 40 of 40 iterations of 8 pictures" in page


def test_page_shows_worst_pictures_mistakes_and_how_the_run_was_made(run):
    page = write_page(run).read_text()
    assert re.search(r"<h3>The worst</h3>.*1\.jpg: PQ 12\.3.*<h3>Others, .*<p>2\.jpg</p>", page, re.DOTALL)
    assert re.search(r"<th>&lt;sky&gt;</th>\s*<td[^>]*>90</td>\s*<td[^>]*>10</td>", page)
    assert "in 30 pictures" in page.replace("\n", " ")
    assert re.findall(r"<dt>duration</dt><dd>([^<]*)</dd>", page) == [
        "unknown, since it was killed",
        "1:02:05",
    ]
    assert "<dd>train_net.py --data &#39;a b&#39;</dd><dt>date</dt><dd>2021-07-13T10:00:00+00:00</dd>" in page
    assert '<a href="config.yaml">' in page
    assert "SOLVER: {MAX_ITER: 40, IMS_PER_BATCH: 8}" in page
    assert "sees shapes everywhere" in page.replace("\n", " ")


CLICKS = """<script>
const style = element => getComputedStyle(element), of = selector => document.querySelector(selector);
const facts = {width: document.documentElement.scrollWidth, screen: innerWidth};
facts.heights = [...document.querySelectorAll(".row svg")].map(svg => svg.clientHeight);
of("#masks").click();
facts.masks = style(of(".mask")).display;
of("#k0").click();
facts.rows = [...document.querySelectorAll(".row")].map(row => style(row).display);
const zoom = of(".row svg");
zoom.parentElement.click();
facts.zoomed = [style(zoom).position, zoom.clientWidth];
parent.postMessage(JSON.stringify(facts), "*");
</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_page_in_a_browser_fits_a_phone_and_answers_clicks(run):
    page = write_page(run).read_text()
    # A script may look at a copy of the page.
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (run / "copy.html").write_text(page.replace("</body>", CLICKS))
    # A window of Chromium is at least 500 pixels wide, a frame is not.
    (run / "phone.html").write_text(
        "<script>onmessage = message => document.body.append(message.data)</script>"
        '<body><iframe src="copy.html" style="width: 390px; height: 844px; border: 0"></iframe></body>'
    )
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={run / 'profile'}",
    ]
    command = [*browser, "--virtual-time-budget=5000", "--dump-dom", (run / "phone.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    facts = json.loads(re.search(r"\{.*\}", shown).group())
    assert facts["width"] <= facts["screen"] == 390
    assert all(height > 100 for height in facts["heights"])
    assert facts["masks"] == "none"
    assert facts["rows"] == ["grid", "none"]
    assert facts["zoomed"] == ["fixed", 390]


def test_video_is_a_picture_that_moves_at_its_rate(run):
    page = write_page(run).read_text()
    source = re.search(r'<img src="data:image/webp;base64,([^"]+)" alt="moves.mp4: 5 frames at 12', page)
    moving = Image.open(io.BytesIO(base64.b64decode(source.group(1))))
    assert (moving.n_frames, moving.size) == (5, (64, 48))
    moving.seek(1)
    moving.load()
    assert moving.info["duration"] == 83


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        "config.yaml",
        "run.json",
        "gallery/gallery.json",
        "gallery/000001_truth.png",
        "moves.mp4",
    ],
)
def test_page_does_without_any_one_file(run, name):
    (run / name).unlink()
    assert "<h2>Pictures</h2>" in write_page(run).read_text()


def test_video_that_cannot_be_read_is_left_out(run, caplog):
    (run / "broken.avi").write_bytes(b"no video")
    page = write_page(run).read_text()
    assert "broken.avi" not in page
    assert "broken.avi cannot be read as a video" in caplog.text


def test_pictures_are_the_worst_the_best_and_some_between():
    scores = [50.0, 10.0, math.nan, 90.0, 30.0, 70.0, 20.0, 80.0]
    chosen = choose([Scored({"file_name": str(score)}, score) for score in scores], 6)
    assert [(picture.group, picture.entry["file_name"]) for picture in chosen] == [
        *(("worst", "10.0"), ("worst", "20.0"), ("best", "90.0"), ("best", "80.0")),
        *(("spread", "50.0"), ("spread", "30.0")),
    ]
    assert len(choose([Scored({}, math.nan)] * 4, 3)) == 3
    assert len(choose([Scored({}, 1.0)] * 2, 12)) == 2


def test_half_a_line_of_metrics_is_passed_over(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19, "lr": 1.0}\n{"iteration": 39, "lr": 2.0}\n{"iteration": 5')
    assert read_metrics(path) == [{"iteration": 19, "lr": 1.0}, {"iteration": 39, "lr": 2.0}]


def test_a_repeated_iteration_counts_once_with_its_later_values(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [{"iteration": 19, "lr": 1.0}, {"iteration": 39, "lr": 2.0}, {"iteration": 19, "lr": 3.0}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_metrics(path) == [{"iteration": 19, "lr": 3.0}, {"iteration": 39, "lr": 2.0}]


def test_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds nothing to show" in error
    assert main([str(tmp_path / "no")]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_runs_as_a_program(run):
    command = [sys.executable, "-W", "ignore", run_page.__file__, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{run / 'index.html'}\n")


def test_curves_hold_the_finite_values():
    records = [
        {"iteration": k, "a": value} for k, value in ((0, 1.0), (10, 3.0), (30, 2.0), (40, float("nan")))
    ]
    (line,) = curve_figure({"a": "loss"}, records).axes[0].lines
    assert line.get_xydata().tolist() == [[0, 1], [10, 3], [30, 2]]


def test_one_point_is_a_dot_and_several_curves_have_a_legend():
    records = [{"iteration": 1, "b": 1.0}, {"iteration": 2, "a": 2.0, "b": 2.0}]
    (axes,) = curve_figure({"a": "<a>", "b": "b"}, records).axes
    assert [line.get_marker() for line in axes.lines] == ["o", ""]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["<a>", "b"]


def test_chart_without_values_is_nothing():
    assert curve_figure({"a": "a", "b": "b"}, [{"iteration": 1, "b": float("nan")}]) is None
