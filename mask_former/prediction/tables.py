"""Files with entries of many images, which grow while a program runs: JSON and CSV, with a journal.

Entries are appended to a journal (`.<file>.journal`, one line of JSON per image) at once; the file itself is
written at the end, atomically. A journal that an interrupted run left behind is read by the next one.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask_former.formats import replacing

Key = int | str
Entry = dict[str, Any]


class ResultTable:
    """Entries by image, in one file; see the module. Subclasses define the file's format."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.journal = file.with_name(f".{file.name}.journal")
        self.entries: dict[Key, list[Entry]] = {}
        if file.exists():
            try:
                self.read(file.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file} exists and cannot be added to ({error}); move it away or choose another folder."
                ) from error
        self._read_journal()
        self._stream = open(self.journal, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)

    def read(self, text: str) -> None:
        """Fill `entries` from the content of an existing file."""
        raise NotImplementedError

    def content(self) -> str:
        """Return the content of the file."""
        raise NotImplementedError

    def add(self, key: Key, entries: list[Entry]) -> None:
        """Set the entries of an image, replacing those it had."""
        self.entries[key] = entries
        try:
            self._stream.write(json.dumps([key, entries]).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(self.journal)) from error

    def close(self) -> None:
        """Write the file, then delete the journal."""
        if self._stream.closed:
            return
        with replacing(self.file) as partial:
            partial.write_text(self.content(), encoding="utf-8")
        self._stream.close()
        self.journal.unlink(missing_ok=True)

    def _read_journal(self) -> None:
        if not self.journal.exists():
            return
        data = self.journal.read_bytes()
        for line in data.splitlines():
            try:
                key, entries = json.loads(line)
            except ValueError:  # incomplete: the run was killed while it wrote this line
                continue
            self.entries[key] = entries
        if not data.endswith(b"\n"):
            with self.journal.open("ab") as stream:
                stream.write(b"\n")
                os.fsync(stream.fileno())


class PanopticTable(ResultTable):
    """COCO's panoptic JSON; an entry is {"annotation", "image"}."""

    def __init__(self, file: Path, categories: list[Entry]) -> None:
        self.categories = categories
        super().__init__(file)

    def read(self, text: str) -> None:
        """See `ResultTable`."""
        content = json.loads(text)
        if content["categories"] != self.categories:
            raise ValueError("its classes differ from those of the new results")
        images = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            key = annotation["image_id"]
            self.entries[key] = [{"annotation": annotation, "image": images[key]}]

    def content(self) -> str:
        """See `ResultTable`."""
        entries = [entry for entries in self.entries.values() for entry in entries]
        return json.dumps(
            {
                "images": [entry["image"] for entry in entries],
                "annotations": [entry["annotation"] for entry in entries],
                "categories": self.categories,
            }
        )


class CocoTable(ResultTable):
    """COCO's results JSON: one list with the instances of all images."""

    def read(self, text: str) -> None:
        """See `ResultTable`."""
        for entry in json.loads(text):
            self.entries.setdefault(entry["image_id"], []).append(entry)

    def content(self) -> str:
        """See `ResultTable`."""
        return json.dumps([entry for entries in self.entries.values() for entry in entries])


class CsvTable(ResultTable):
    """A table with a header; the first column names the image."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        super().__init__(file)

    def read(self, text: str) -> None:
        """See `ResultTable`."""
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if reader.fieldnames != self.columns:
            raise ValueError(f"its columns are {reader.fieldnames}, expected {self.columns}")
        for row in reader:
            self.entries.setdefault(row[self.columns[0]], []).append(row)

    def content(self) -> str:
        """See `ResultTable`."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry for entries in self.entries.values() for entry in entries)
        return text.getvalue()
