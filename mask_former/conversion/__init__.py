"""Weights of others in our names and ours in theirs; see `python -m mask_former.convert`."""
