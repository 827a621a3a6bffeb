"""A line for whoever waits."""

from rich.console import Console


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text)
