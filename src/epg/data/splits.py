"""How splits are spelled."""

# Spellings tried in this order for each split; "test" falls back to a validation set, as ImageNet has no other.
SPLIT_NAMES = {
    "train": ("train",),
    "test": ("test", "validation", "val"),
    "validation": ("validation", "val"),
    "val": ("val", "validation"),
}
ALL_SPLITS = ("train", "test", "validation", "val")
