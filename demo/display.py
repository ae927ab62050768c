"""Windows."""

import os
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

WINDOW_TITLE = "MaskFormer"
ESCAPE_KEY = 27


class Window:
    """A window that shows one picture after the other."""

    def __init__(self, wait_ms: int = 0) -> None:
        """Check that windows can be opened; `wait_ms` is the time to wait for a key, 0: until one comes."""
        check_display()
        self.wait_ms = wait_ms

    def show(self, picture: NDArray[np.uint8]) -> bool:
        """Show a picture (H, W, 3) RGB, and return whether the user wants to see more: Esc ends."""
        cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL)
        cv2.imshow(WINDOW_TITLE, np.ascontiguousarray(picture[..., ::-1]))
        return cv2.waitKey(self.wait_ms) != ESCAPE_KEY

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        cv2.destroyAllWindows()


def check_display() -> None:
    """Raise ValueError where no window can be opened."""
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display:
        raise ValueError("There is no display for a window: give --output FOLDER.")
    # In another process: OpenCV aborts where Qt finds no display, and its headless package has no windows.
    trial = subprocess.run(
        [sys.executable, "-c", "import cv2; cv2.namedWindow('trial')"], capture_output=True
    )
    if trial.returncode != 0:
        display = os.environ.get("DISPLAY", "")
        raise ValueError(
            f"OpenCV opens no window (DISPLAY is {display!r}): give --output FOLDER. If there is one: is "
            "opencv-python installed, and not its headless twin?"
        )
