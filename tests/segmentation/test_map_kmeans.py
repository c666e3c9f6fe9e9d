"""k-means of up-sampled features, against the same of features that are made."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from callbacks.segmentation_figures import clusters_figure
from lightning_modules.segmentation import map_kmeans as module
from lightning_modules.segmentation.map_kmeans import UpsampledMaps, cluster_images, map_kmeans, renumbered

SIZE = 24


def drawn(seed=0, shapes=((5, 6, 6), (3, 12, 12), (2, 5, 7))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) + 3 for shape in shapes]


def made(maps, size=SIZE):
    """[pixel, channel], by torch's own up-sampling."""
    up = [F.interpolate(each[None], (size, size), mode="bilinear", align_corners=False)[0] for each in maps]
    return torch.cat(up).flatten(1).T


def test_sums_scores_norms_and_pixels_are_those_of_the_features_that_are_made(monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 500)  # several chunks of rows, the last one smaller
    maps = drawn()
    features, truth = UpsampledMaps(maps, SIZE), made(maps)
    weights = torch.rand(4, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(features.sums(weights), weights.flatten(1) @ truth, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(features.scores(truth[:4]).flatten(1), truth[:4] @ truth.T, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(features.squared_norms().flatten(), truth.square().sum(1), atol=1e-10, rtol=1e-12)
    chosen = torch.tensor([0, 77, SIZE**2 - 1])
    torch.testing.assert_close(features.pixels(chosen), truth[chosen], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_scikit_learn(seed):
    maps = drawn(seed)
    truth = made(maps).numpy()
    first = truth[np.random.default_rng(seed).choice(len(truth), 5, replace=False)]
    reference = KMeans(5, init=first, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(truth)
    found = map_kmeans(maps, SIZE, 5, centroids=torch.from_numpy(first), max_iterations=300)
    assert (found.labels.flatten().numpy() == reference.labels_).all()
    np.testing.assert_allclose(found.centroids.numpy(), reference.cluster_centers_, atol=1e-9)
    assert found.inertia == pytest.approx(reference.inertia_, rel=1e-9)


def test_clustering_maps_as_they_are_is_something_else():
    """A mosaic: labels at low resolution, up-sampled, differ from labels of up-sampled features."""
    maps = drawn(shapes=[(4, 6, 6)])
    low = map_kmeans(maps, 6, 3, torch.Generator().manual_seed(0))
    high = map_kmeans(maps, SIZE, 3, centroids=low.centroids)
    mosaic = low.labels.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert (mosaic != high.labels).float().mean() > 0.05


def test_first_centroids_are_drawn_by_squared_distance(monkeypatch):
    """Two far pairs of quarters: the second centroid hardly ever lies in the first one's pair."""
    monkeypatch.setattr(module, "_drawn", counted := Draws(module._drawn))
    corners = torch.tensor([[[0.0, 0.01], [10.0, 10.01]]], dtype=torch.float64)
    for seed in range(20):
        map_kmeans([corners.repeat_interleave(4, 1).repeat_interleave(4, 2)], 8, 2, torch.Generator().manual_seed(seed))
    rows = np.array(counted.places).reshape(20, 2) // 8 // 4  # upper or lower half
    assert (rows[:, 0] != rows[:, 1]).all()
    assert 3 < (rows[:, 0] == 0).sum() < 17


class Draws:
    def __init__(self, function):
        self.function, self.places = function, []

    def __call__(self, *arguments):
        place = self.function(*arguments)
        self.places.append(place.item())
        return place


def test_a_cluster_without_pixels_finds_some():
    maps = drawn(shapes=[(2, 8, 8)])
    far = torch.full((1, 2), 1e6, dtype=torch.float64)
    start = torch.cat([made(maps, 8)[:2], far])
    found = map_kmeans(maps, 8, 3, centroids=start)
    assert (found.labels.flatten().bincount(minlength=3) > 0).all()
    assert found.inertia < map_kmeans(maps, 8, 2, centroids=start[:2]).inertia


def test_fewer_different_pixels_than_clusters():
    found = map_kmeans([torch.ones(3, 2, 2)], 4, 5, torch.Generator().manual_seed(0))
    assert found.inertia == pytest.approx(0, abs=1e-12)


def test_each_map_of_each_image_has_its_own_clusters():
    halves = torch.zeros(2, 3, 8, 8)
    halves[0, :, :5] = 1  # the upper part has more pixels
    halves[1, :, :, 6:] = 1
    labels = cluster_images(lambda images: [images, images[:, :1] - 1], halves, 2)
    assert labels.shape == (2, 2, 8, 8)
    for number in range(2):
        assert torch.equal(labels[0, number], (halves[0, 0] == 0).long())
        assert torch.equal(labels[1, number], (halves[1, 0] == 1).long())


def test_clusters_take_the_numbers_of_those_they_share_most_pixels_with():
    reference = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 2, 2]])
    labels = torch.tensor([[1, 1, 2, 2], [1, 1, 1, 0], [1, 1, 1, 0]])
    assert renumbered(labels, reference, 3).tolist() == [[0, 0, 1, 1], [0, 0, 0, 2], [0, 0, 0, 2]]
    for seed in range(5):  # a mere exchange of numbers is undone, and a number that is not used does no harm
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(renumbered(order[reference], reference, 4), reference)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"maps of shapes \[\[1, 2, 4, 4\]\]"):
        map_kmeans([torch.zeros(1, 2, 4, 4)], 8)
    with pytest.raises(ValueError, match=r"num_clusters=65"):
        map_kmeans([torch.zeros(2, 4, 4)], 8, 65)
    with pytest.raises(ValueError, match=r"centroids of shape \[3, 2\], but \[5, 2\]"):
        map_kmeans([torch.zeros(2, 4, 4)], 8, centroids=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        map_kmeans([torch.full((2, 4, 4), torch.nan)], 8)


def test_the_figure_shows_each_map_under_its_step_and_block_beside_its_image():
    palette = np.array([[10, 0, 0], [0, 200, 0]], np.uint8)
    labels = np.zeros((2, 2, 3, 4, 4), np.int64)
    labels[1, 1, 2] = 1
    images = np.stack([np.full((3, 4, 4), 7, np.uint8), np.full((3, 4, 4), 9, np.uint8)])
    figure = clusters_figure(images, labels, ["t = 50", "t = 200"], list("abc"), palette)
    for number, part in enumerate(figure.subfigs):
        picture, *panels = part.axes
        assert (picture.images[0].get_array() == 7 + 2 * number).all()
        assert [ax.get_title() for ax in panels] == ["a", "b", "c", "", "", ""]
        assert [ax.get_ylabel() for ax in panels] == ["t = 50", "", "", "t = 200", "", ""]
        for ax, its_labels in zip(panels, labels[number].reshape(6, 4, 4), strict=True):
            assert (ax.images[0].get_array() == palette[its_labels]).all()
    with pytest.raises(ValueError, match=r"labels of shapes \[\[2, 3, 4, 4\], .* with 1 names"):
        clusters_figure(images, labels, ["t"], list("abc"), palette)
