"""Videos are written so that they can be read again, with the same size, rate and number of frames."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import video_files
from video_demo import SegmentTracker
from video_files import VideoWriter, find_problem

from mask_former.prediction.video import VideoReader


def moving_square(frame, height, width):
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[10:30, 2 * frame : 2 * frame + 20] = (200, 30, 90)
    return picture


@pytest.fixture
def without_av(monkeypatch):
    monkeypatch.setattr(video_files, "av", None)
    monkeypatch.setitem(sys.modules, "av", None)


def write(path, height=48, width=64, rate=24.0, frames=7):
    with VideoWriter(path, width, height, rate) as writer:
        for frame in range(frames):
            writer.write(moving_square(frame, height, width))
    return writer


def write_all(path, width, height, frames):
    with VideoWriter(path, width, height, 24.0) as writer:
        for frame in frames:
            writer.write(frame)


def opencv_facts(path):
    """Width, height, rate and number of frames as OpenCV decodes them, without the code under test."""
    capture = cv2.VideoCapture(str(path))
    frames = 0
    while capture.read()[0]:
        frames += 1
    return (
        capture.get(cv2.CAP_PROP_FRAME_WIDTH),
        capture.get(cv2.CAP_PROP_FRAME_HEIGHT),
        capture.get(cv2.CAP_PROP_FPS),
        frames,
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_size_rate_and_frames_come_back(tmp_path, suffix):
    writer = write(tmp_path / f"a{suffix}", rate=12.5)
    assert opencv_facts(writer.path) == (64, 48, 12.5, 7)
    assert find_problem(writer.path, 64, 48, 12.5, 7) is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_size_rate_and_frames_come_back_without_pyav(tmp_path, suffix, without_av):
    writer = write(tmp_path / f"a{suffix}", rate=12.5)
    assert opencv_facts(writer.path) == (64, 48, 12.5, 7)
    assert find_problem(writer.path, 64, 48, 12.5, 7) is None


@pytest.mark.parametrize(("size", "pixels"), [((48, 64), "yuv420p"), ((49, 65), "yuv444p")])
def test_videos_are_h264(tmp_path, size, pixels):
    av = pytest.importorskip("av")
    with av.open(str(write(tmp_path / "a.mp4", *size).path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", pixels)


def test_odd_size_and_broken_rate_are_kept(tmp_path):
    writer = write(tmp_path / "a.mp4", height=49, width=65, rate=23.976)
    width, height, rate, frames = opencv_facts(writer.path)
    assert (width, height, frames) == (65, 49, 7)
    assert rate == pytest.approx(23.976, abs=1e-3)


def test_odd_size_without_pyav_is_refused_before_work_starts(tmp_path, without_av):
    with pytest.raises(ValueError, match=r"a\.mp4 with 65x49 pixels .* install PyAV"):
        VideoWriter(tmp_path / "a.mp4", 65, 49, 24.0)
    assert list(tmp_path.iterdir()) == []


def test_a_rotated_video_is_read_upright(tmp_path):
    path = write(tmp_path / "a.mp4").path
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 44  # of the track header: row by row, 16.16 fixed point
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 2**30)  # a quarter clockwise
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    with VideoReader(path) as reader:
        assert (reader.width, reader.height) == (48, 64)
        first = next(iter(reader))
    expected = np.rot90(moving_square(0, 48, 64), -1)
    assert np.abs(first.astype(int) - expected).mean() < 4


def test_colours_are_not_swapped(tmp_path):
    write(tmp_path / "a.mp4")
    with VideoReader(tmp_path / "a.mp4") as reader:
        frames = list(reader)
    assert len(frames) == reader.frames == 7
    difference = np.abs(frames[3].astype(int) - moving_square(3, 48, 64)).mean()
    assert difference < 8  # compression; with red and blue swapped it is above 20
    assert np.abs(frames[3][..., ::-1].astype(int) - moving_square(3, 48, 64)).mean() > difference + 3


def test_an_existing_file_is_not_replaced(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"a\.mp4 is there already"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, 25.0)
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"


def test_an_error_half_way_leaves_a_file_that_plays(tmp_path):
    def interrupted():
        yield from (moving_square(frame, 48, 64) for frame in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path / "a.mp4", 64, 48, interrupted())
    assert opencv_facts(tmp_path / "a.mp4") == (64, 48, 24, 5)


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Frame 1 .* \(48, 60, 3\), expected \(48, 64, 3\)"):
        write_all(tmp_path / "a.mp4", 64, 48, [np.zeros((48, 60, 3), np.uint8)])
    assert not (tmp_path / "a.mp4").exists()  # a video without frames plays nowhere


def test_a_damaged_result_is_told(tmp_path):
    path = write(tmp_path / "a.avi").path
    assert find_problem(path, 64, 48, 24.0, 7) is None
    assert "7 frames can be read back, expected 8" in find_problem(path, 64, 48, 24.0, 8)
    assert "rate is 24 frames/s, expected 25" in find_problem(path, 64, 48, 25.0, 7)
    assert "(64, 48), expected (48, 64)" in find_problem(path, 48, 64, 24.0, 7)
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read back" in find_problem(path, 64, 48, 24.0, 7)


FILL = """
import resource, sys
import numpy as np
from video_files import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
noise = np.random.default_rng(0)
with VideoWriter(sys.argv[1], 160, 120, 24.0) as writer:
    for _ in range(500):
        writer.write(noise.integers(0, 256, (120, 160, 3)).astype(np.uint8))
"""


def test_a_full_disk_leaves_a_file_that_plays(tmp_path):
    command = [sys.executable, "-c", FILL, str(tmp_path / "a.mp4")]
    folder = Path(video_files.__file__).parent  # which -c puts on the path
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    error = done.stderr.strip().splitlines()[-1]
    assert "bytes of space are left for" in error
    width, height, rate, frames = opencv_facts(tmp_path / "a.mp4")
    assert (width, height, rate) == (160, 120, 24)
    assert f"it ends after {frames} frames" in error
    assert 5 < frames < 500


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_that_fills_leaves_a_file_that_plays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("this machine mounts no tmpfs")
    try:
        noise = np.random.default_rng(0).integers(0, 256, (200, 120, 160, 3)).astype(np.uint8)
        with pytest.raises(OSError, match="bytes of space are left") as error:
            write_all(disk / "a.mp4", 160, 120, noise)
        width, height, rate, frames = opencv_facts(disk / "a.mp4")
        assert (width, height, rate) == (160, 120, 24)
        assert f"it ends after {frames} frames" in str(error.value)
    finally:
        subprocess.check_call(["umount", str(disk)])


@pytest.mark.parametrize("content", [b"", b"text\n" * 50])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        VideoReader(tmp_path / "a.mp4")


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="Camera 97 gives no picture"):
        VideoReader(97)


def squares(*corners, size=12, height=64, width=80):
    masks = np.zeros((len(corners), height, width), bool)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + size, left : left + size] = True
    return masks


def test_a_moving_segment_keeps_its_number_whatever_the_order():
    tracker = SegmentTracker()
    first = tracker.update([3, 3, 5], squares((0, 0), (30, 30), (50, 60)))
    assert first == [0, 1, 0]
    assert tracker.update([5, 3, 3], squares((50, 62), (33, 32), (2, 3))) == [0, 1, 0]


def test_a_segment_of_another_class_gets_another_number():
    tracker = SegmentTracker()
    tracker.update([3, 5], squares((0, 0), (30, 30)))
    assert tracker.update([3, 3], squares((0, 0), (30, 30))) == [0, 1]


def test_a_segment_that_was_hidden_is_known_again_for_some_frames():
    tracker = SegmentTracker(patience=2)
    tracker.update([1, 1], squares((0, 0), (30, 30)))
    for _ in range(2):
        assert tracker.update([1], squares((30, 30))) == [1]
    assert tracker.update([1, 1], squares((30, 30), (0, 0))) == [1, 0]
    for _ in range(3):
        tracker.update([1], squares((30, 30)))
    assert tracker.update([1, 1], squares((30, 30), (0, 0))) == [1, 2]


def test_assignment_is_the_best_of_all_together():
    # The first overlaps both of before, the second only that which the first overlaps more.
    tracker = SegmentTracker(min_iou=0.05)
    tracker.update([1, 1], squares((0, 0), (0, 10)))
    assert tracker.update([1, 1], squares((0, 6), (0, 14))) == [0, 1]


def test_a_frame_without_segments_is_a_frame():
    tracker = SegmentTracker()
    tracker.update([1], squares((0, 0)))
    assert tracker.update([], np.zeros((0, 64, 80), bool)) == []
    assert tracker.update([1], squares((1, 1))) == [0]
