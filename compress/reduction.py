"""Parts of a trained ViT made smaller so that their outputs change least on given images; pure functions of weights and statistics.

Statistics are second moments of activations, summed over calibration images. All are float64: they are solved with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Elimination", "eliminate", "narrower_queries", "narrower_values", "refit"]

LAZY = 64  # rows that are left out before the whole inverse and all weights are brought up to date
RIDGE = 1e-4  # of the mean second moment: keeps a solution from resting on what the images hardly show


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """(d, d) square root of a second moment, and its inverse; directions without any are given a little."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0) + RIDGE * values.clamp(min=0).mean()
    root = values.sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def narrower_queries(q: Tensor, k: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Maps of one head's queries and keys to `rank` channels, so that their products change least (Eckart and Young).

    A product of queries and keys is that of `B` and `C` in between, whatever their rank: with Q and K whitened, the best of a rank is
    the truncated singular value decomposition.

    Args:
        q: (d, d) second moment of the queries.
        k: (d, d) that of the keys, less their mean over the image, which no softmax over keys notices.
        rank: channels that are left.

    Returns:
        B (d, rank) and C (d, rank): new queries are Q B, new keys K C.
    """
    root_q, back_q = _root(q)
    root_k, back_k = _root(k)
    left, values, right = torch.linalg.svd(root_q @ root_k)
    scale = values[:rank].sqrt()
    return back_q @ left[:, :rank] * scale, back_k @ right[:rank].T * scale


def narrower_values(context: Tensor, projection: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """One head's values in `rank` channels, so that what is projected of them changes least.

    Args:
        context: (d, d) second moment of attention times values.
        projection: (d, channels), what the head's context is multiplied by.
        rank: channels that are left.

    Returns:
        B (d, rank), of which new values are V B, and the new projection (rank, channels).
    """
    root, back = _root(context)
    left, values, right = torch.linalg.svd(root @ projection, full_matrices=False)
    return back @ left[:, :rank], values[:rank, None] * right[:rank]


@dataclass(frozen=True)
class Elimination:
    """In which order parts of a layer's input are best left out, and what that costs when the rest takes over what it can."""

    order: Tensor  # (parts,), the first to go first
    errors: Tensor  # (parts + 1,) share of the output's second moment that is lost without the first 0, 1, … of them


def eliminate(moment: Tensor, matrix: Tensor, size: int = 1) -> Elimination:
    """Leave out parts of the input of a linear layer, those first whose loss the others make up for best.

    Optimal brain surgeon (Hassibi and Stork, 1993) for the least squares of a layer's output: with H the inverse of the
    second moment, leaving out the rows g of the matrix costs W[g]^T H[g, g]^-1 W[g] once the others are solved anew, which
    is W - H[:, g] H[g, g]^-1 W[g].

    Args:
        moment: (parts * size + 1, ...) second moment of the input, a constant for the bias last.
        matrix: (parts * size + 1, out), transposed weight of the layer, the bias last; never left out.
        size: inputs of a part: 1 for neurons, a head's width for heads.
    """
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    inverse, weights = torch.linalg.inv(moment + ridge), matrix.clone()
    order, costs = _neurons(inverse, weights) if size == 1 else _groups(inverse, weights, size)
    whole = torch.einsum("io,ij,jo->", matrix, moment, matrix)
    errors = torch.cat([costs.new_zeros(1), costs.cumsum(0) / whole])
    return Elimination(order, errors.clamp(max=1.0))


def _neurons(inverse: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Order and costs of single rows, `LAZY` of them at a time."""
    left, order, costs = torch.arange(len(inverse) - 1, device=inverse.device), [], []
    while len(left):
        chosen, lost, pivots, rows = _lazily(inverse, weights, min(LAZY, len(left)))
        order.append(left[chosen])
        costs.append(lost)
        stays = torch.ones(len(inverse), dtype=torch.bool, device=inverse.device)
        stays[chosen] = False
        kept = pivots[stays]
        inverse = inverse[stays][:, stays] - kept @ kept.T
        weights = weights[stays] - kept @ rows
        left = left[stays[:-1]]
    return torch.cat(order), torch.cat(costs)


def _lazily(inverse: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next `count` rows to go and their costs; what is left is then `inverse` - P P^T and `weights` - P R, of which P and R come too.

    Meanwhile only what decides is brought up to date, the diagonal of the inverse and the norms of the weights' rows: a product of the
    weights and one row for each that goes, where writing all weights anew takes several times as long.
    """
    diagonal, norms = inverse.diagonal().clone(), weights.square().sum(1)
    pivots, rows = inverse.new_zeros(len(inverse), count), weights.new_zeros(count, weights.shape[1])
    order, costs = torch.empty(count, dtype=torch.long, device=inverse.device), inverse.new_empty(count)
    gone = torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
    gone[-1] = True  # the bias stays
    for number in range(count):
        chosen = int((norms / diagonal).masked_fill(gone, torch.inf).argmin())
        before = pivots[:, :number]
        pivot = inverse[chosen] - before @ before[chosen]
        pivot = pivot / pivot[chosen].sqrt()
        row = (weights[chosen] - before[chosen] @ rows[:number]) / pivot[chosen]
        cost = row.square().sum()
        norms += pivot * (pivot * cost - 2 * (weights @ row - before @ (rows[:number] @ row)))
        norms.clamp_(min=0)
        diagonal -= pivot.square()
        order[number], costs[number], gone[chosen] = chosen, cost, True
        pivots[:, number], rows[number] = pivot, row
    return order, costs, pivots, rows


def _groups(inverse: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Order and costs of groups of `size` rows."""
    left = torch.arange((len(inverse) - 1) // size, device=inverse.device)
    order, costs = [], []
    while len(left):
        rows = left[:, None] * size + torch.arange(size, device=left.device)
        inner = torch.linalg.solve(inverse[rows[:, :, None], rows[:, None, :]], weights[rows])
        each = (weights[rows] * inner).sum((1, 2))
        chosen = int(each.argmin())
        order.append(left[chosen])
        costs.append(each[chosen])
        across = torch.linalg.solve(inverse[rows[chosen]][:, rows[chosen]], inverse[rows[chosen]])
        weights -= inverse[:, rows[chosen]] @ inner[chosen]
        inverse -= inverse[:, rows[chosen]] @ across
        left = torch.cat([left[:chosen], left[chosen + 1 :]])
    return torch.stack(order), torch.stack(costs)


def refit(moment: Tensor, matrix: Tensor, kept: Tensor, size: int = 1) -> Tensor:
    """The rows of a matrix that are left (kept * size + 1, out), solved anew so that the input times it changes least.

    Args:
        moment: as for `eliminate`, as are `matrix` and `size`.
        matrix: see there.
        kept: (n,) the parts that stay.
        size: see there.
    """
    rows = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
    rows = torch.cat([rows, rows.new_tensor([len(moment) - 1])])
    chosen = moment[rows][:, rows]
    ridge = RIDGE * moment.diagonal().mean()
    # A ridge towards the old weights: what the images do not tell stays as it was.
    wanted = moment[rows] @ matrix + ridge * matrix[rows]
    chosen.diagonal().add_(ridge)
    found: Tensor = torch.linalg.solve(chosen, wanted)
    return found
