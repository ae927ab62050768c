"""The command line of train_net.py."""

from argparse import ArgumentParser

from detectron2.engine import default_argument_parser


def argument_parser(epilog: str | None = None) -> ArgumentParser:
    """Return Detectron2's parser with the flags of this project."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        *("--import", "-m"),
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers your own data sets or models",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse weights that do not fit the model in every entry"
    )
    parser.add_argument("--allow-unsafe", action="store_true", help="read weight files that may run code")
    return parser
