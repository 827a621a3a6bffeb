"""Data: sources of images, their order, loading, normalisation and augmentation."""
