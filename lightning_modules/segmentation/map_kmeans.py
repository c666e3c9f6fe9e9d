"""k-means of the pixels of an image by their up-sampled features, which are never made.

The form of Figure 4 of Baranchuk et al., Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022, shows
what the activations of each block and step of a diffusion model tell apart. A pixel x belongs to the centroid c with
the largest c.x - |c|^2 / 2, which is affine in x: it is computed at the maps' own resolutions, and only the scores are
up-sampled. The sum of the pixels of a cluster is the product of the map and the adjoint of the up-sampling, applied to
the cluster's indicator. The iteration is that of Lloyd, Least squares quantization in PCM, 1982; it starts as
k-means++, Arthur and Vassilvitskii, SODA 2007.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

_NUMBERS_AT_ONCE = 2**22  # of up-sampled features, while the pixels' norms are summed


class Clusters(NamedTuple):
    """What k-means found."""

    labels: Tensor  # [size, size] int64
    centroids: Tensor  # [cluster, channel] float64
    inertia: float  # sum of the pixels' squared distances to their centroids


class UpsampledMaps:
    """The features that bilinear up-sampling (align_corners=False) of an image's maps would give, unmade; float64.

    Args:
        maps: [channels, h, w] each; a pixel's feature vector is the concatenation of all in this order.
        size: height and width to up-sample to.

    Raises:
        ValueError: there is no map, or one that has not three axes.
    """

    def __init__(self, maps: Sequence[Tensor], size: int) -> None:
        if not maps or any(each.ndim != 3 for each in maps):
            raise ValueError(
                f"maps of shapes {[list(each.shape) for each in maps]}: give at least one, each [channels, h, w]"
            )
        self.maps = [each.double() for each in maps]
        self.channels = [len(each) for each in maps]
        self.size = size
        # Up-sampling is linear along each axis: up(map) = rows @ map @ columns.T.
        self.matrices = [tuple(_matrix(side, size, each.device) for side in each.shape[1:]) for each in self.maps]

    def scores(self, centroids: Tensor) -> Tensor:
        """c.x of centroids [cluster, channel] and all pixels, [cluster, size, size]."""
        total = torch.zeros((), dtype=torch.float64, device=centroids.device)
        for each, part, (rows, columns) in self._parts(centroids):
            total = total + rows @ torch.einsum("kc,chw->khw", part, each) @ columns.T
        return total

    def sums(self, indicators: Tensor) -> Tensor:
        """Sums of the pixels' vectors, weighted by indicators [cluster, size, size]: [cluster, channel]."""
        return torch.cat(
            [
                torch.einsum("khw,chw->kc", rows.T @ indicators @ columns, each)
                for each, (rows, columns) in zip(self.maps, self.matrices, strict=True)
            ],
            dim=1,
        )

    def pixels(self, positions: Tensor) -> Tensor:
        """Vectors of a few pixels by their numbers row * size + column, [pixel] to [pixel, channel]."""
        y, x = positions // self.size, positions % self.size
        return torch.cat(
            [
                torch.einsum("ph,chw,pw->pc", rows[y], each, columns[x])
                for each, (rows, columns) in zip(self.maps, self.matrices, strict=True)
            ],
            dim=1,
        )

    def squared_norms(self) -> Tensor:
        """|x|^2 of all pixels, [size, size]; some rows of features exist at a time."""
        norms = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.maps[0].device)
        for each, (rows, columns) in zip(self.maps, self.matrices, strict=True):
            at_once = max(1, _NUMBERS_AT_ONCE // (len(each) * self.size))
            for start in range(0, self.size, at_once):
                chosen = slice(start, start + at_once)
                norms[chosen] += (rows[chosen] @ each @ columns.T).square().sum(0)
        return norms

    def _parts(self, centroids: Tensor) -> list[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
        return list(zip(self.maps, centroids.split(self.channels, dim=1), self.matrices, strict=True))


def map_kmeans(
    maps: Sequence[Tensor],
    size: int,
    num_clusters: int = 5,
    generator: torch.Generator | None = None,
    centroids: Tensor | None = None,
    max_iterations: int = 100,
) -> Clusters:
    """Cluster the pixels of one image by their up-sampled features.

    Args:
        maps: of the image, [channels, h, w] each.
        size: height and width of the image, in pixels.
        num_clusters: at most the pixels.
        generator: of the first centroids, on the CPU.
        centroids: to start with, [num_clusters, channel]; None: drawn as in k-means++.
        max_iterations: of Lloyd's algorithm, which ends when no pixel changes its cluster.

    Raises:
        ValueError: the maps or the centroids have the wrong shape, ``num_clusters`` or ``max_iterations`` is out of
            range, or a feature is not finite.
    """
    if not 1 <= num_clusters <= size**2 or max_iterations < 1:
        raise ValueError(
            f"num_clusters={num_clusters} must lie between 1 and the {size**2} pixels, max_iterations={max_iterations} "
            "must be at least 1"
        )
    features = UpsampledMaps(maps, size)
    norms = features.squared_norms()
    if not norms.isfinite().all():
        raise ValueError("the maps hold numbers that are not finite: they have no clusters")
    if centroids is None:
        centroids = _first_centroids(features, norms, num_clusters, generator)
    shape = (num_clusters, sum(features.channels))
    if centroids.shape != shape:
        raise ValueError(f"centroids of shape {list(centroids.shape)}, but {list(shape)} are needed")
    centroids, before = centroids.double(), None
    for _ in range(max_iterations):
        best = (features.scores(centroids) - centroids.square().sum(1)[:, None, None] / 2).max(0)
        labels, distances = best.indices, norms - 2 * best.values
        if before is not None and torch.equal(labels, before):
            break
        before = labels
        indicators = F.one_hot(labels, num_clusters).movedim(-1, 0).double()
        counts = indicators.sum((1, 2))  # [cluster]
        centroids = features.sums(indicators) / counts.clamp(min=1)[:, None]
        if lost := int((counts == 0).sum()):  # they go where the pixels are that fit worst
            centroids[counts == 0] = features.pixels(distances.flatten().topk(lost).indices)
    return Clusters(labels, centroids, float(distances.clamp(min=0).sum()))


def cluster_images(
    describe: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    num_clusters: int = 5,
    num_starts: int = 3,
    seed: int = 0,
) -> Tensor:
    """Clusters of the pixels of each image by each map alone, as Figure 4 shows them for blocks and steps.

    Args:
        describe: such as a `PixelBackbone`, from images to maps [image, channels, h, w].
        images: [image, 3, size, size] float32 in [0, 1].
        num_clusters: of each map.
        num_starts: of k-means++, of which the one with the least inertia counts.
        seed: of the starts, the same for all images and maps.

    Returns:
        int64 [image, map, size, size]; cluster 0 has the most pixels, the last one the fewest.
    """
    grids = []
    for image in images.split(1):
        with torch.no_grad():
            maps = describe(image)
        chosen = []
        for each in maps:
            generator = torch.Generator().manual_seed(seed)
            starts = [
                map_kmeans([each[0]], image.shape[-1], num_clusters, generator=generator) for _ in range(num_starts)
            ]
            labels = min(starts, key=lambda clusters: clusters.inertia).labels
            order = labels.flatten().bincount(minlength=num_clusters).argsort(descending=True, stable=True)
            chosen.append(order.argsort()[labels])
        grids.append(torch.stack(chosen))
    return torch.stack(grids)


def renumbered(labels: Tensor, reference: Tensor, num_clusters: int) -> Tensor:
    """Clusters under the numbers of others, so that as many pixels as can be have the same number in both.

    Args:
        labels: int64 [height, width] from 0 to num_clusters - 1, as those of `cluster_images`.
        reference: the same shape, whose numbers are taken.
        num_clusters: of both.
    """
    pairs = (labels * num_clusters + reference).flatten().bincount(minlength=num_clusters**2)
    shared = pairs.view(num_clusters, num_clusters)  # pixels of a cluster and of one of the reference
    _, numbers = linear_sum_assignment(shared.cpu().numpy(), maximize=True)
    return torch.from_numpy(numbers).to(labels.device)[labels]


def _first_centroids(
    features: UpsampledMaps, norms: Tensor, num_clusters: int, generator: torch.Generator | None
) -> Tensor:
    """Pixels, each drawn with a probability in proportion to its squared distance to the nearest before it."""
    nearest = torch.ones_like(norms)
    chosen: list[Tensor] = []
    for _ in range(num_clusters):
        position = _drawn(nearest.flatten().cpu(), generator).to(norms.device)
        centroid = features.pixels(position)
        distances = norms - 2 * features.scores(centroid)[0] + centroid.square().sum()
        nearest = (torch.minimum(nearest, distances) if chosen else distances).clamp(min=0)
        chosen.append(centroid)
    return torch.cat(chosen)


def _drawn(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """A place, int64 [1], with a probability in proportion to its weight; torch's own takes 2**24 places at most."""
    limits = weights.cumsum(0)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * limits[-1]
    return torch.searchsorted(limits, point, right=True).clamp(max=len(weights) - 1)


def _matrix(side: int, size: int, device: torch.device) -> Tensor:
    """Up-sampling along one axis as a matrix, [size, side]."""
    unit = torch.eye(side, dtype=torch.float64, device=device)[None]
    return F.interpolate(unit, size, mode="linear", align_corners=False)[0].T
