"""How good: features, references, metrics, receipts."""

# What extractors compute for each image.
FEATURES = "features"  # (N, D): Frechet distance, precision, recall, density, coverage, KID
SPATIAL = "spatial"  # (N, S): sFID
LOGITS = "logits"  # (N, classes): Inception score, recognised classes
