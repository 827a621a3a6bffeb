"""What may judge a generator: features that it was not trained in. In those of its own loss a small distance shows
nothing, as any network can be satisfied by images that no other finds real."""

from collections.abc import Sequence

from epg.errors import UserError
from epg.evaluation.extractors.extractor import Extractor


def independent(trained_in: Sequence[str], extractors: Sequence[Extractor]) -> list[str]:
    """Names of those in whose features a generator was not trained, by the sha256 of their weights."""
    return [e.name for e in extractors if e.sha256 not in trained_in]


def refuse_no_judge(trained_in: Sequence[str], extractors: Sequence[Extractor]) -> None:
    """Raises UserError where a generator was trained in the features of all extractors."""
    if extractors and not independent(trained_in, extractors):
        raise UserError(
            f"--features {extractors[0].name}: the generator was trained in these features: a small distance in them "
            "shows nothing. Name others beside them: classifier, random, efficientnet, inception, dinov2 or clip"
        )


def notes(trained_in: Sequence[str], extractors: Sequence[Extractor]) -> list[str]:
    """What a receipt says of features that a generator was trained in."""
    judges = independent(trained_in, extractors)
    learnt = [e.name for e in extractors if e.name not in judges]
    return [f"{name}: the generator was trained in these features; judge it by {', '.join(judges)}" for name in learnt]
