"""What samples are measured by: pure functions on features, logits, factors and pictures.

Suffixes: N pictures, D features, K classes, F factors of a class (padded with NaN).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nestar.data.tiny_worlds import CLASSES, FACTORS

BINS = 10
"""Bins of a continuous factor in [0, 1]."""

NEIGHBOURS = 3
"""k of improved precision and recall, as in its paper."""

CHUNK = 1024
"""Rows of a distance matrix held at once."""


def fid(real_ND: Tensor, fake_ND: Tensor) -> float:
    """Frechet distance of two sets of features taken as Gaussians (Heusel et al., arXiv 1706.08500)."""
    return frechet_distance(*moments(real_ND), *moments(fake_ND))


def moments(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(features_ND) < 2:
        raise ValueError(f"A covariance takes at least two pictures, not {len(features_ND)}.")
    features_ND = features_ND.double()
    return features_ND.mean(0), torch.atleast_2d(torch.cov(features_ND.T))


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two Gaussians (Dowson and Landau, 1982).

    The product's root has the trace of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric: its eigenvalues
    are real and no general matrix root is needed.
    """
    values, vectors = torch.linalg.eigh(cov_a.double())
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root_a @ cov_b.double() @ root_a).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).double().square().sum() + cov_a.trace() + cov_b.trace() - 2 * inner
    return max(0.0, distance.item())


def inception_style_score(logits_NK: Tensor) -> float:
    """exp(E_x KL(p(y|x) || p(y))), from 1 to K (Salimans et al., arXiv 1606.03498), in one split."""
    log_p_NK = logits_NK.double().log_softmax(1)
    p_NK = log_p_NK.exp()
    log_marginal_K = p_NK.mean(0).clamp_min(torch.finfo(torch.float64).tiny).log()
    return (p_NK * (log_p_NK - log_marginal_K)).sum(1).mean().exp().item()


def precision_recall(real_ND: Tensor, fake_ND: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991): the shares of fakes and of reals
    that `within_manifolds` finds.

    Raises:
        ValueError: a set has no more than k members.
    """
    fakes_N, reals_N = within_manifolds(real_ND, fake_ND, k)
    return fakes_N.double().mean().item(), reals_N.double().mean().item()


def within_manifolds(real_ND: Tensor, fake_ND: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Which fakes lie within the real manifold, and which reals within the fake one, each (N,) bool.

    A set's manifold is the union of balls around its members that reach to their k-th nearest neighbour.

    Raises:
        ValueError: a set has no more than k members.
    """
    if min(len(real_ND), len(fake_ND)) <= k:
        raise ValueError(f"Precision and recall with k = {k} take more than {k} pictures on each side.")
    real_ND, fake_ND = real_ND.double(), fake_ND.double()  # float32 products lose small distances
    return (
        _inside(fake_ND, real_ND, neighbour_radii(real_ND, k)),
        _inside(real_ND, fake_ND, neighbour_radii(fake_ND, k)),
    )


def neighbour_radii(features_ND: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,)."""
    # The nearest of all is the row itself, at distance zero.
    return torch.cat(
        [torch.cdist(rows, features_ND).kthvalue(k + 1, dim=1).values for rows in features_ND.split(CHUNK)]
    )


def _inside(points_ND: Tensor, centres_MD: Tensor, radii_M: Tensor) -> Tensor:
    """Which points lie within at least one ball, (N,); the border belongs to the ball."""
    return torch.cat([(torch.cdist(rows, centres_MD) <= radii_M).any(1) for rows in points_ND.split(CHUNK)])


def seam_gradients(images_N3HW: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of neighbouring pixels across token borders, and inside tokens, each (N,).

    Inside counts within half a token of a border: the picture's own rim has no border and is emptier than
    its middle, which would give Tiny Worlds, where there is no seam, a ratio of 1.08.

    Raises:
        ValueError: the picture is but one token, or a token is one pixel.
    """
    across, inside = [], []
    for dim in (2, 3):
        # (N, 3, H-1, W), or (N, 3, W-1, H): row i stands between pixels i and i + 1.
        change = images_N3HW.diff(dim=dim).abs().transpose(2, dim)
        place = torch.arange(1, images_N3HW.shape[dim], device=images_N3HW.device)
        border = place % stride == 0
        near = (place > stride // 2) & (place < images_N3HW.shape[dim] - stride // 2)
        across.append(change[:, :, border].flatten(1))
        inside.append(change[:, :, ~border & near].flatten(1))
    border_NP, rest_NP = torch.cat(across, 1), torch.cat(inside, 1)
    if border_NP.shape[1] == 0 or rest_NP.shape[1] == 0:
        raise ValueError(f"Tokens of {stride} pixels leave no border or no inside to compare.")
    return border_NP.mean(1), rest_NP.mean(1)


def seam_ratio(across_N: Tensor, inside_N: Tensor) -> float:
    """Gradient across token borders over gradient inside, over all pictures; 1 = no seams (or all flat)."""
    across, inside = across_N.double().mean().item(), inside_N.double().mean().item()
    if inside == 0:
        return 1.0 if across == 0 else float("inf")
    return across / inside


def seams(images_N3HW: Tensor, stride: int) -> float:
    """`seam_ratio` of a set of pictures whose tokens are `stride` pixels wide."""
    return seam_ratio(*seam_gradients(images_N3HW, stride))


def mean_pairwise_distance(features_ND: Tensor, class_ids_N: Tensor) -> float:
    """Mean Euclidean distance between two pictures of one class, averaged over the classes.

    Raises:
        ValueError: no class has two pictures.
    """
    classes = (features_ND[class_ids_N == class_id].double() for class_id in class_ids_N.unique())
    distances = [torch.pdist(rows_ND).mean() for rows_ND in classes if len(rows_ND) > 1]
    if not distances:
        raise ValueError("A pairwise distance takes two pictures of one class.")
    return torch.stack(distances).mean().item()


def vendi_score(features_ND: Tensor) -> float:
    """Effective number of different pictures, 1 to N (Friedman and Dieng, arXiv 2210.02410).

    exp of the entropy of the eigenvalues of K / N with K the cosine similarity; taken from X^T X / N, which
    has the same eigenvalues other than zero.
    """
    x_ND = torch.nn.functional.normalize(features_ND.double(), dim=1)
    values = torch.linalg.eigvalsh(x_ND.T @ x_ND / len(x_ND)).clamp_min(0)
    return torch.special.entr(values).sum().exp().item()


def class_accuracy(logits_NK: Tensor, class_ids_N: Tensor) -> tuple[float, dict[str, float]]:
    """Share of pictures in which the asked class is named, overall and by class."""
    hits_N = logits_NK.argmax(1) == class_ids_N
    return hits_N.double().mean().item(), means_by_class(hits_N, class_ids_N)


def means_by_class(values_N: Tensor, class_ids_N: Tensor) -> dict[str, float]:
    """By name, the mean over each class's pictures; of what is true or false the share that is true."""
    return {
        CLASSES[i]: values_N[class_ids_N == i].double().mean().item() for i in class_ids_N.unique().tolist()
    }


def factor_coverage(
    real_NF: Tensor, real_ids_N: Tensor, fake_NF: Tensor, fake_ids_N: Tensor
) -> dict[str, Any]:
    """How much of Tiny Worlds' known variety the fakes show, from factors as the network reads them.

    A continuous factor has BINS bins, a discrete one its levels.

    Returns:
        `bins_reached`: share of a factor's bins in which a fake falls, mean over factors; `worst_bins` and
        `worst_factor`: the least of them; `histogram_distance`: total variation distance (0 to 1) between
        the fakes' histogram and the reals', mean over factors; `farthest` and `farthest_factor`: the most.
    """
    reached: dict[str, float] = {}
    distance: dict[str, float] = {}
    for class_id, name in enumerate(CLASSES):
        real_rows, fake_rows = real_NF[real_ids_N == class_id], fake_NF[fake_ids_N == class_id]
        if len(real_rows) == 0 or len(fake_rows) == 0:
            continue
        for i, factor in enumerate(FACTORS[name]):
            real, fake = (factor_histogram(rows[:, i], factor.levels) for rows in (real_rows, fake_rows))
            reached[f"{name}.{factor.name}"] = (fake > 0).double().mean().item()
            distance[f"{name}.{factor.name}"] = 0.5 * (fake - real).abs().sum().item()
    if not reached:
        raise ValueError("Coverage takes a class that is on both sides.")
    worst, farthest = min(reached, key=reached.__getitem__), max(distance, key=distance.__getitem__)
    return {
        "bins_reached": sum(reached.values()) / len(reached),
        "worst_bins": reached[worst],
        "worst_factor": worst,
        "histogram_distance": sum(distance.values()) / len(distance),
        "farthest": distance[farthest],
        "farthest_factor": farthest,
    }


def factor_histogram(values_N: Tensor, levels: int) -> Tensor:
    """Shares (BINS or levels,) of a continuous (levels 0, values in [0, 1]) or discrete factor's values."""
    bins = (values_N * BINS).long().clamp(0, BINS - 1) if levels == 0 else values_N.long()
    return torch.bincount(bins, minlength=levels or BINS).double() / len(values_N)


def psnr(images_N3HW: Tensor, reference_N3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in [-1, 1], (N,), see `decibels`."""
    return decibels((images_N3HW - reference_N3HW).square().flatten(1).mean(1))


def decibels(mse: Tensor) -> Tensor:
    """PSNR in dB from mean squared errors of pictures in [-1, 1], whose peak is 2. Capped at 100 dB."""
    return 10 * torch.log10(4 / mse.clamp_min(4e-10))
