"""Why, not how good: probes, denoising errors, neighbours, sweeps, comparisons of receipts."""
