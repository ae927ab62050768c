"""Data sets, label readers and mappers; importing it registers the data sets."""

from mask_former.data import (
    datasets,  # noqa: F401  registers the published sets
    shapes_catalog,  # noqa: F401  registers the synthetic set
)
