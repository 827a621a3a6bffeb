"""What a run leaves on disk, and how it is read back: checkpoints, exports, the authors' files."""
