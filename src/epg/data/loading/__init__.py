"""Data sets for training, and their batches."""
