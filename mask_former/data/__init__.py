"""Data sets, label readers and mappers; importing it registers the data sets."""

from mask_former.data import datasets, shapes

datasets.register_all()
shapes.register()
