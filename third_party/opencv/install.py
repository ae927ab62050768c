"""Install the OpenCV that works here: opencv-python, or its headless twin where system libraries lack.

The two install the same files, so never both. Only opencv-python opens windows, as the demo does.

    python third_party/opencv/install.py [--constraint FILE]
"""

import argparse
import subprocess
import sys

FULL, HEADLESS = "opencv-python", "opencv-python-headless"


def pip(*arguments):
    """Run pip and return whether it succeeded."""
    return (
        subprocess.call([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]) == 0
    )


def problem():
    """Return what stops `import cv2`, as one line, or None."""
    done = subprocess.run([sys.executable, "-c", "import cv2"], stderr=subprocess.PIPE, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def main():
    """Install, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--constraint", metavar="FILE", help="pip constraints")
    arguments = parser.parse_args()
    pinned = ["--constraint", arguments.constraint] if arguments.constraint else []
    if problem() is None:
        return 0
    if not pip("install", *pinned, FULL):
        return 1
    missing = problem()
    if missing is None:
        return 0
    sys.stdout.write(
        f"{FULL} does not import here ({missing}): installing {HEADLESS} instead, which opens no windows\n"
    )
    if not (pip("uninstall", "--yes", FULL) and pip("install", *pinned, HEADLESS)):
        return 1
    missing = problem()
    if missing is not None:
        sys.stderr.write(f"install.py: error: OpenCV does not import: {missing}\n")
    return 0 if missing is None else 1


if __name__ == "__main__":
    sys.exit(main())
