"""What earlier checks of a folder have found, keyed by the size and the time of the files."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mask_former.formats import replacing

VERSION = 1  # of what is remembered: raised when the check learns something


def key_of(*parts: Any) -> str:
    """Return a short text that stands for JSON values."""
    text = json.dumps(parts, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stamp(path: str | Path) -> tuple[str, int, int]:
    """Return path, size and time of a file, which change when it does; zeros if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns


def default_cache(folder: Path) -> Path:
    """Return the file where the check of a folder is remembered; the folder itself may be read-only."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "mask_former" / f"check-{folder.resolve().name}-{key_of(str(folder.resolve()))[:8]}.json"


class Memory:
    """A JSON file of findings; those that nobody asks for or adds are forgotten at the next `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.old: dict[str, Any] = {}
        self.new: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # none yet, or a broken one: everything is looked at again
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("version") == VERSION:
                self.old = content["findings"]

    def get(self, key: str) -> Any:
        """Return a finding, or None."""
        if key in self.old:
            self.new[key] = self.old[key]
        return self.new.get(key)

    def write(self) -> None:
        """Write the findings; where that is not possible, the next check starts anew."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                partial.write_text(json.dumps({"version": VERSION, "findings": self.new}), encoding="utf-8")
