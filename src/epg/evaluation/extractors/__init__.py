"""Networks whose features images are compared in: Inception for FID, others by name, and in-domain ones."""

from epg.evaluation.extractors.base import FEATURES, LOGITS, SPATIAL, Extractor

__all__ = ["FEATURES", "LOGITS", "SPATIAL", "Extractor"]
