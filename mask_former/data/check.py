"""Check a folder of your own data: `python -m mask_former.data.check FOLDER`.

Every file is read once; a second run looks only at files that have changed. Faults are named by file, with
what to do.

Exit status: 0 nothing stands in the way of a training, 1 something must be mended, 2 wrong arguments.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mask_former.data.own.check import CONTENT_ERRORS, check_dataset, check_sources
from mask_former.data.own.check_page import write_check_page
from mask_former.data.own.layouts import LAYOUTS, find_dataset
from mask_former.data.own.report import faults_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folder that a command line names, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the data set")
    add("--layout", choices=sorted(LAYOUTS), help="where several fit (default: what lies in the folder)")
    add("--page", type=Path, metavar="HTML", help="write the report with drawings, one file")
    add("--ignore-faults", action="store_true", help="leave out pictures with faults, and say how many")
    add("--processes", type=int, metavar="N", help="that read files (default: one for each core)")
    options = parser.parse_args(arguments)
    folder = options.folder.expanduser()
    try:
        dataset = find_dataset(folder, options.layout)
    except CONTENT_ERRORS as error:
        # The likely reason, and there may be more than one, is in the annotation files.
        faults = check_sources(folder) if folder.is_dir() else []
        if not faults and not isinstance(error, OSError | ValueError):
            raise
        sys.stdout.write("\n".join([f"error: {error}", *(faults_text(faults) if faults else ())]) + "\n")
        return 1
    report = check_dataset(dataset, processes=options.processes, ignore_faults=options.ignore_faults)
    sys.stdout.write(f"{report.text()}\n")
    if options.page is not None:
        write_check_page(report, options.page.expanduser())
        sys.stdout.write(f"The page is {options.page}\n")
    return int(report.stops)


if __name__ == "__main__":
    sys.exit(main())
