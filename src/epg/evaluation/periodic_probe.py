"""Evaluation while stage 1 trains: how well the encoder's nearest neighbours name the class, clean and under noise."""

from collections.abc import Callable

from epg.circumstances import circumstances
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.distributed import rank, world_size
from epg.errors import UserError
from epg.evaluation.noisy_features import noisy_encoder
from epg.evaluation.receipt import Number, Receipt
from epg.evaluation.voting import labelled_splits, nearest_vote, take
from epg.networks.encoder import Encoder

LEVELS = (0.002, 0.5)  # unshifted: clean, and as noisy as the data varies
TRAIN_IMAGES = 5  # for each test image


class EncoderExamination:
    """k-NN accuracy of the encoder in training at two noise levels; keys `knn_0.002` and `knn_0.5`.

    Raises UserError without labels, and with sharded weights, which the encoder alone cannot gather.
    """

    def __init__(self, config: RunConfig, encoder: Encoder, dataset: ImageDataset) -> None:
        if dataset.num_classes < 2:
            raise UserError("--evaluation.every: an encoder is evaluated by the labels of its images, which have none")
        if config.training.parallel == "fsdp" and world_size() > 1:
            raise UserError("--evaluation.every: not with --training.parallel fsdp in stage 1; see `epg probe` instead")
        import sklearn.neighbors  # noqa: F401  # slow, and between two steps a watchdog looks at the clock

        self.encoder = noisy_encoder("encoder in training", encoder, config)
        train, test = labelled_splits(self.encoder, config.data.source, config.seed)
        count = config.evaluation.count
        self.train = take(train, TRAIN_IMAGES * count, "train", config.seed)
        self.test = take(test, count, "test", config.seed)
        self.fingerprints = {"train": train.fingerprint(), "test": test.fingerprint()}

    def __call__(self, step: int, between: Callable[[], None]) -> Receipt | None:
        metrics = {}
        for level in LEVELS:
            between()
            known, asked = (self.encoder.features(s.images, s.noise, level) for s in (self.train, self.test))
            right = nearest_vote(known, self.train.labels, asked) == self.test.labels
            value = float(right.mean())
            metrics[f"knn_{level:g}"] = Number(
                name=f"k-NN accuracy at noise level {level:g}",
                value=value,
                error=(value * (1 - value) / len(right)) ** 0.5,
                error_from="binomial",
                better="higher",
            )
        if rank() != 0:
            return None
        config = self.encoder.config
        told = {"kind": "encoder", "recipe": config.recipe, "stage": config.stage, "step": step, "seed": config.seed}
        return Receipt(
            metrics=metrics,
            samples={**told, "count": len(self.test.labels), "name": f"step {step}"},
            reference={"name": "training images", "count": len(self.train.labels), **self.fingerprints},
            extractors={},
            seed=config.seed,
            **circumstances(),
        )
