"""Processes that prepare and load images."""
