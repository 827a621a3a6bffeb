"""Which classes are meant: by number or by name, on the command line, in Python and in diffusers' pipeline alike."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from epg.errors import UserError
from epg.randomness import doubles

Mixture = Mapping[str, float]
"""Weights of classes, which add up to 1: {"cat": 0.5, "dog": 0.5}."""
Labels = int | str | Mixture | Sequence[int | str | Mixture] | NDArray[Any] | Tensor
"""Integers are class numbers; texts are names, or numbers as the command line has them. Of an array or tensor of
floats (N, classes) the rows are weights."""
AS_NAME, AS_NUMBER = "name=", "number="  # what says how an ambiguous text is meant


@dataclass(frozen=True)
class Classes:
    """The classes of a model: how many (0: it is unconditional), their names, and the training images of each."""

    count: int
    names: Sequence[str] = ()
    images: Sequence[int] = ()

    @property
    def usual(self) -> Sequence[int]:
        """Those that are drawn unless others are asked for: that training had images of, or all, where that is not
        known."""
        return [number for number, images in enumerate(self.images[: self.count]) if images] or range(self.count)

    def numbers(self, classes: Labels, where: str = "--classes") -> list[int]:
        """Numbers of classes by number or name. Raises UserError for what the model does not have."""
        if self.count == 0 and not (isinstance(classes, Sequence) and len(classes) == 0):
            raise UserError(f"{where}: this model is unconditional and takes none")
        return class_numbers(classes, self.names, self.count, where)

    def tensor(self, labels: Labels | None, count: int | None = None) -> Tensor | None:
        """One label for each image: class numbers (N,) int64, or, where any is a mixture, weights (N, classes).

        A single one, which is not in a list, is that of all `count`.
        """
        if labels is None:
            return None
        if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind == "f":
            labels = torch.from_numpy(labels)
        if isinstance(labels, Tensor) and labels.ndim:
            return labels
        single = isinstance(labels, int | str | Mapping) or not getattr(labels, "ndim", 1)
        found = self._listed(_listed(labels))
        return found.expand(count, *found.shape[1:]) if single and count else found

    def _listed(self, listed: list[Any]) -> Tensor:
        if not any(isinstance(each, Mapping) for each in listed):
            return torch.tensor(self.numbers(listed, "labels"), dtype=torch.int64)
        rows = torch.zeros(len(listed), self.count)
        for row, each in zip(rows, listed, strict=True):
            weights = each if isinstance(each, Mapping) else {each: 1.0}
            for number, weight in zip(self.numbers(list(weights), "labels"), weights.values(), strict=True):
                row[number] += weight
        return rows

    def placed(self, labels: Labels | None, count: int, device: torch.device) -> Tensor | None:
        """Labels of `count` images as the network takes them, checked before they go to its device: there, a wrong one
        would end the process.

        (N,) int64, or of mixtures the weights (N, classes + 1), float32, whose last column is "no class". Raises
        UserError for labels out of range or of another shape or type, and for any of an unconditional model.
        """
        if labels is None:
            return None
        if self.count == 0:
            raise UserError("labels: this model is unconditional and takes none")
        labels = self.tensor(labels, count)
        assert labels is not None
        if labels.is_floating_point() and labels.shape == (count, self.count):
            if not bool((labels >= 0).all() & ((labels.sum(1) - 1).abs() < 1e-3).all()):
                raise UserError("labels: weights of classes must not be negative, and those of an image add up to 1")
            return F.pad(labels.to(device, torch.float32, non_blocking=True), (0, 1))
        if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(
                f"labels: {count} integers are expected, or weights ({count}, {self.count}), not "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        if not bool(((labels >= 0) & (labels < self.count)).all()):
            raise UserError(f"labels must be between 0 and {self.count - 1}")
        return labels.to(device, torch.int64, non_blocking=True)

    def chosen(self, count: int, classes: Labels, balanced: bool, seed: int) -> Tensor | None:
        """Labels (count,) of `classes`, or of the `usual` ones: see `Generator.make_labels`."""
        numbers = self.numbers(classes)
        if self.count == 0:
            return None
        choices = torch.tensor(numbers or self.usual)
        if balanced:
            return choices[torch.arange(count) % len(choices)]
        weights = torch.tensor(self.images, dtype=torch.float64)[choices] if self.images else None
        if weights is None or not bool(weights.sum() > 0):
            weights = torch.ones(len(choices), dtype=torch.float64)
        drawn = torch.from_numpy(doubles(count, seed, "sample labels"))
        return choices[torch.searchsorted(weights.cumsum(0) / weights.sum(), drawn, right=True)]


def no_class(labels: Tensor, null: int) -> Tensor:
    """As many labels that mean "no class": the class `null`, or all weight on it."""
    if not labels.is_floating_point():
        return torch.full_like(labels, null)
    return F.one_hot(torch.full_like(labels[:, 0], null, dtype=torch.int64), labels.shape[1]).to(labels)


def class_numbers(
    classes: Labels, names: Sequence[str] = (), count: int | None = None, where: str = "--classes"
) -> list[int]:
    """Class numbers of a model with `count` classes (None: not checked) of these names.

    A name matches in full, or as one of the synonyms that commas separate ("golden retriever, yellow lab"), in upper
    or lower case. A text of digits is the class of that name or the class of that number, whichever there is; where
    they are different classes, `name=3` and `number=3` say which.

    Raises UserError, which begins with `where`: for an unknown name with what comes close, for one of several classes
    and for a number that is also another class's name with the choices.
    """
    return [_class_number(wanted, names, count, where) for wanted in _listed(classes)]


def _listed(classes: Labels) -> list[Any]:
    """Of numpy and torch, Python's own numbers."""
    if isinstance(classes, Tensor | np.ndarray | np.generic):
        classes = classes.tolist()
    if not isinstance(classes, Iterable) or isinstance(classes, str | Mapping):
        return [classes]
    return [each.tolist() if isinstance(each, Tensor | np.ndarray | np.generic) else each for each in classes]


def _class_number(wanted: Any, names: Sequence[str], count: int | None, where: str) -> int:
    if isinstance(wanted, str):
        return _of_text(wanted, names, count, where)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise UserError(f"{where}: {wanted!r} is neither a class number nor a name")
    return _in_range(wanted, count, where)


def _in_range(number: int, count: int | None, where: str) -> int:
    if not 0 <= number < (count if count is not None else np.inf):
        raise UserError(f"{where} {number}: out of range, the model has classes 0 to {(count or 0) - 1}")
    return number


def _of_text(wanted: str, names: Sequence[str], count: int | None, where: str) -> int:
    found = [names.index(wanted)] if wanted in names else []
    is_number = _is_number(wanted)
    if not found and wanted.startswith(AS_NUMBER) and _is_number(wanted.removeprefix(AS_NUMBER)):
        return _in_range(int(wanted.removeprefix(AS_NUMBER)), count, where)
    by_name = not found and wanted.startswith(AS_NAME)
    plain = _plain(wanted.removeprefix(AS_NAME) if by_name else wanted)
    found = found or [i for i, name in enumerate(names) if plain == _plain(name)]
    found = found or [i for i, name in enumerate(names) if plain in map(_plain, name.split(","))]
    if is_number and not found:
        return _in_range(int(wanted), count, where)
    if is_number and found != [int(wanted)] and int(wanted) < len(names):
        raise UserError(
            f"{where} {wanted}: class number {wanted}, which is called {names[int(wanted)]!r}, or number {found[0]}, "
            f"which is called {names[found[0]]!r}? Pass {AS_NUMBER}{wanted} or {AS_NAME}{wanted}."
        )
    if len(found) == 1:
        return found[0]
    if found:
        meant = "; ".join(f"{i} is {names[i]!r}" for i in found[:5])
        raise UserError(f"{where} {wanted}: {len(found)} classes have this name ({meant}). Pass the number.")
    synonyms = {_plain(part): part.strip() for name in names for part in (name, *name.split(","))}
    close = difflib.get_close_matches(plain, synonyms, n=3)
    hint = f"; did you mean {', '.join(synonyms[name] for name in close)}?" if close else ""
    some = f"; there are {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names and not close else ""
    raise UserError(f"{where} {wanted}: no such class{hint} (a name of the data set, or a number){some}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
