"""Matching the moments of features: Frechet distances between fixed Gaussians and running ones, as a loss.

Yang et al., "Representation Frechet Loss for Visual Generation" (arXiv 2604.28190); classes and their discriminant are
ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.distributed import all_reduce_sum, world_size

SUPPORT = 1e-8  # eigenvalues below this part of the largest are those of directions in which nothing varies
RIDGE = 0.03  # of the mean variance, added to every variance of the discriminant: it divides by them
SMALLEST = 1e-12  # variance


class Moments(nn.Module):
    """A Gaussian of D features for each of C classes: of real images, and running ones of generated images.

    Features are measured from the mean of the real ones of their class, in units of `scale`, so that nothing is lost to
    cancellation. Of a covariance S of generated images the distance needs the diagonal and `A^T S A` for the axes A of
    the real one, `A A^T = S_r`: so the means of x^2 and of `(A^T x) (A^T x)^T` are what runs. Axes in which real images
    do not vary are 0 and come first; they are left out of products (`trim`). All numbers are buffers: they are part of
    a checkpoint.

    Args:
        size: the number of features, D.
        decay: b, by which everything that was seen counts less with every step.
        classes: C; 1 where images have no labels, and all are of class 0.
        shared: whether the classes have one covariance (G = 1, that of images around the mean of their class), or each
            has its own (G = C).
    """

    share: Tensor
    centre: Tensor
    scale: Tensor
    axes: Tensor
    directions: Tensor
    offset: Tensor
    count: Tensor
    mean: Tensor
    squares: Tensor
    products: Tensor

    def __init__(self, size: int, decay: float, classes: int = 1, shared: bool = True) -> None:
        super().__init__()
        self.size, self.decay, self.classes = size, decay, classes
        self.groups = 1 if shared else classes
        self.register_buffer("share", torch.full((classes,), 1 / classes))  # of the classes among the real images
        self.register_buffer("centre", torch.zeros(classes, size))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("axes", torch.eye(size).repeat(self.groups, 1, 1))  # A, columns
        self.register_buffer("directions", torch.zeros(classes, size))  # of the discriminant, with its offset
        self.register_buffer("offset", torch.zeros(classes))
        self.register_buffer("count", torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(classes, size))
        self.register_buffer("squares", torch.ones(self.groups, size))
        self.register_buffer("products", torch.eye(size).repeat(self.groups, 1, 1))
        self.still = 0  # axes that are 0 in every group

    # Before the first step ------------------------------------------------------------------------------------------

    def sums(self, device: torch.device) -> "Sums":
        """What moments are made of, empty, with as many groups as these have."""
        return Sums(self.size, self.classes, self.groups, device)

    def set_reference(self, real: "Sums") -> None:
        """The Gaussians of real images; all processes call it together. Their unit makes the mean variance 1."""
        counts, mean, second = real.moments()
        share = counts / counts.sum()
        mean = torch.where(counts[:, None] > 0, mean, share @ mean)  # a class without images is in the middle
        covariance = second - self.by_group(share, mean, mean)
        shares = self.of_groups(share)[:, None, None]
        within = (shares * covariance).sum(0)
        between = share @ (mean - share @ mean).square()
        scale = (within.diagonal() + between).mean().clamp(min=SMALLEST).sqrt()
        self.share.copy_(share)
        self.centre.copy_(mean)
        self.scale.copy_(scale)
        self.axes.copy_(principal_axes(covariance / scale**2))
        self._discriminate((mean - share @ mean) / scale, within / scale**2)

    def _discriminate(self, mean: Tensor, within: Tensor) -> None:
        """Fisher's discriminant: `log p(c | x) = w_c x + b_c + ...` for Gaussians with one covariance."""
        ridge = RIDGE * within.diagonal().mean().clamp(min=SMALLEST)
        directions = torch.linalg.solve(within + ridge * torch.eye(self.size).to(within), mean.T).T
        self.directions.copy_(directions)
        self.offset.copy_(self.share.double().clamp(min=SMALLEST).log() - (directions * mean).sum(1) / 2)

    def start(self, generated: "Sums") -> None:
        """The first running moments; all processes call it together."""
        counts, mean, second = generated.moments()
        centre, scale = self.centre.double(), self.scale.double()
        moved = torch.where(counts[:, None] > 0, mean - centre, 0)
        # sum (x - a)(x - a)^T = sum x x^T - sum x a^T - sum a x^T + sum a a^T, with a the centre of the class of x
        weights = counts / counts.sum()
        crossed, squares = self.by_group(weights, mean, centre), self.by_group(weights, centre, centre)
        moved_second = (second - crossed - crossed.mT + squares) / scale**2
        known = self.of_groups(counts)[:, None, None] > 0  # a class of which nothing was drawn is as it should be
        axes = self.axes.double()
        started = torch.where(known, moved_second, axes @ axes.mT)
        self.count.copy_(counts)
        self.mean.copy_(moved / scale)
        self.squares.copy_(started.diagonal(dim1=1, dim2=2))
        self.products.copy_(axes.mT @ started @ axes)

    def trim(self) -> None:
        """Looks, on the host, which axes are 0; before the first step of a process."""
        self.still = int((self.axes == 0).all(1).all(0).sum())

    def by_group(self, weights: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Products of vectors of classes, (C, D) each, as (G, D, D): of every class (whatever the weights), or their
        weighted sum."""
        if self.groups > 1:
            return left[:, :, None] * right[:, None, :]
        return torch.einsum("c,cd,ce->de", weights, left, right)[None]

    def of_groups(self, share: Tensor) -> Tensor:
        """Shares or counts of classes (C,), as those of groups (G,)."""
        return share if self.groups > 1 else share.sum()[None]

    # A step ---------------------------------------------------------------------------------------------------------

    def in_units(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (N, D) as they are compared."""
        return (features - self.centre[labels]) / self.scale

    def forward(self, features: Tensor, labels: Tensor, which: Tensor) -> Tensor:
        """The distance of the running moments, after they took in features (N, D) of this and all other processes.

        Its value is that of the running moments; its gradient is that of the distance by the moments of this batch
        alone, as if they were all: so it does not shrink with 1 - b.

        Args:
            labels: (N,) int64.
            which: 1 for every sample that counts, else 0, (N,). Where there is none nothing changes.
        """
        with torch.autocast(features.device.type, enabled=False):  # moments are sums of many numbers
            x = self.in_units(features.to(self.mean), labels)
            with torch.no_grad():
                distance, gradient = self._take_in(x, labels, which.to(x))
            # Every process has the whole distance, and gradients are averaged over processes: hence their number.
            return through(distance, world_size() * (x * gradient).sum())

    def _take_in(self, x: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The distance, and its gradient by x (N, D)."""
        chosen = (labels[:, None] == torch.arange(self.classes, device=x.device)) * which[:, None]  # (N, C)
        parts = chosen if self.groups > 1 else which[:, None]  # (N, G)
        axes, running = self.axes[:, :, self.still :], self.products[:, self.still :, self.still :]
        along = self._times(axes, x, labels)  # (N, R)
        counts = all_reduce_sum(chosen.sum(0))
        some, whole = counts.clamp(min=1), self.of_groups(counts).clamp(min=1)
        count = torch.where(counts.sum() > 0, self.decay * self.count + counts, self.count)
        tiny = torch.finfo(count.dtype).tiny
        rates = self.of_groups(counts) / self.of_groups(count).clamp(min=tiny)
        mean = all_reduce_sum(chosen.T @ x) / some[:, None]
        self.mean.lerp_(mean, (counts / count.clamp(min=tiny))[:, None])
        self.squares.lerp_(all_reduce_sum(parts.T @ x.square()) / whole[:, None], rates[:, None])
        products = all_reduce_sum((parts.T[:, None] * along.T) @ along) / whole[:, None, None]
        running.lerp_(products, rates[:, None, None])
        self.count.copy_(count)
        distance, inverse = self.distance()
        # Of `P_g (E|x|^2 - 2 tr M_g^(1/2)) + (p_c - h_c) |m_c|^2` with `M = A^T (E x x^T - sum_c h_c m_c m_c^T) A`
        held, centre = self.held(), (self.mean[:, None] @ axes)[:, 0]
        weight = parts @ (self.of_groups(self.share) / whole)  # (N,)
        pulled = weight[:, None] * along - chosen @ ((held / some)[:, None] * centre)
        for factor in (inverse, axes.mT):
            pulled = self._times(factor, pulled, labels)  # (N, D) in the end
        outwards = weight[:, None] * x + chosen @ (((self.share - held) / some)[:, None] * self.mean)
        return distance, 2 * (outwards - pulled)

    def _times(self, matrices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Vectors (N, A), each times the matrix (A, B) of its group: (N, B)."""
        of_all = x @ matrices  # (G, N, B)
        return of_all[labels, torch.arange(len(x), device=x.device)] if self.groups > 1 else of_all[0]

    def held(self) -> Tensor:
        """Shares of the classes' means in the covariances, (C,)."""
        return self.share if self.groups > 1 else self.count / self.count.sum()

    def distance(self) -> tuple[Tensor, Tensor]:
        """`sum_c p_c (|m_c|^2 + tr S_c + tr S_rc - 2 tr M_c^(1/2))` with `M = A^T S A` and p the share of a class among
        the real images; and `M^(-1/2)` (G, R, R)."""
        axes, running = self.axes[:, :, self.still :], self.products[:, self.still :, self.still :]
        held, centre = self.held(), (self.mean[:, None] @ axes)[:, 0]  # (C,), (C, R)
        between, inverse = roots(running - self.by_group(held, centre, centre))
        spread = self.squares.double().sum(1) + axes.square().sum((1, 2)) - 2 * between
        outside = (self.share - held).double() @ self.mean.double().square().sum(1)
        return outside + self.of_groups(self.share).double() @ spread, inverse

    def surprise(self, features: Tensor, labels: Tensor, which: Tensor) -> Tensor:
        """`-log p(y | features)` by the discriminant of the real images, averaged over the samples that count.

        Arguments as `forward`'s.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = (features.to(self.mean) - self.share @ self.centre) / self.scale
            found = F.cross_entropy(x @ self.directions.T + self.offset, labels, reduction="none") * which
            return all_reduce_sum(found.sum()) / all_reduce_sum(which.sum()).clamp(min=1)


def through(value: Tensor, gradient: Tensor) -> Tensor:
    """One tensor's numbers with the gradient of another."""
    return value + (gradient - gradient.detach())


def principal_axes(covariance: Tensor) -> Tensor:
    """A with A A^T = S for symmetric S (..., D, D), columns by length; 0 where nothing varies but by rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * torch.where(values > SUPPORT * values[..., -1:], values, 0).clamp(min=0).sqrt()[..., None, :]


def roots(products: Tensor) -> tuple[Tensor, Tensor]:
    """`tr M^(1/2)` (G,), in float64, and `M^(-1/2)` of symmetric M (G, R, R), 0 where nothing varies."""
    values, vectors = torch.linalg.eigh(products.double())
    tiny = torch.finfo(values.dtype).tiny
    inverse = torch.where(values > SUPPORT * values[..., -1:], values.clamp(min=tiny).rsqrt(), 0)
    half = (vectors * inverse.sqrt()[..., None, :]).to(products)
    return values.clamp(min=0).sqrt().sum(-1), half @ half.mT


class Sums:
    """Counts (C,) and sums (C, D) of features by class, and their products by group (G, D, D), of many batches; in
    float64, over all processes in the end."""

    def __init__(self, size: int, classes: int, groups: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.counts, self.totals, self.products = zeros(classes), zeros(classes, size), zeros(groups, size, size)

    def add(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Features (N, D) with labels (N,), each as often as its weight (N,) says."""
        x = features.double()
        chosen = F.one_hot(labels, len(self.counts)).double() * weights.double()[:, None]
        parts = chosen if len(self.products) > 1 else chosen.sum(1, keepdim=True)
        self.counts += chosen.sum(0)
        self.totals += chosen.T @ x
        self.products += (parts.T[:, None] * x.T) @ x

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, means (C, D) and second moments (G, D, D); all processes call it together."""
        counts, totals, products = (all_reduce_sum(x) for x in (self.counts, self.totals, self.products))
        whole = counts if len(products) > 1 else counts.sum()[None]
        one = torch.finfo(counts.dtype).tiny
        return counts, totals / counts.clamp(min=one)[:, None], products / whole.clamp(min=one)[:, None, None]
