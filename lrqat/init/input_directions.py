"""The directions in which the inputs of a projection vary most.

The second moments C = E[x x^T] (in, in) of wide layers are too large to keep for a whole model. A
sketch Y = C Omega, with four columns for each direction wanted, is enough to find them, and
is gathered in one pass (randomised Nystrom approximation):

    Tropp, Yurtsever, Udell, Cevher, "Fixed-Rank Approximation of a Positive-Semidefinite Matrix
    from Streaming Data", 2017, algorithm 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrqat.init.input_statistics import Statistic

_COLUMNS_A_DIRECTION = 4  # of the sketch; with fewer the weaker ones come out too weak


@dataclass(frozen=True)
class InputDirections:
    """C = E[x x^T] of one projection as sum of e_k v_k v_k^T, plus a diagonal.

    Attributes:
        vectors: orthonormal v_k, float32 (r, in), the strongest first.
        energies: e_k >= 0, float32 (r,): mean square of v_k . x.
        rest: float32 (in,): what the r directions leave of the mean square of each channel.
    """

    vectors: Tensor
    energies: Tensor
    rest: Tensor


def sketch_of(directions: int) -> Statistic:
    """The input statistic that `find_directions` needs: sums of x x^T Omega.

    Args:
        directions: how many will be asked for.

    Returns:
        A function from x (..., in) to float32 (in, 4 `directions`), or (in, in) if that is less.
    """
    tests: dict[int, Tensor] = {}  # by width; made once

    def sketch(x: Tensor) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1]).float()
        width = inputs.shape[1]
        if width not in tests:
            tests[width] = _test_matrix(width, directions)
        return inputs.T @ (inputs @ tests[width].to(inputs.device))

    return sketch


def find_directions(
    sketches: Mapping[str, Tensor], squares: Mapping[str, Tensor], directions: int
) -> dict[str, InputDirections]:
    """The leading directions of every projection.

    Args:
        sketches: module name -> mean of the sketch for as many `directions`.
        squares: module name -> (in,) mean square of each channel.
        directions: r.
    """
    return {name: _of_one(sketch, squares[name], directions) for name, sketch in sketches.items()}


def sketch_columns(width: int, directions: int) -> int:
    """Columns of the sketch of inputs with `width` channels."""
    return min(width, _COLUMNS_A_DIRECTION * directions)


def _test_matrix(width: int, directions: int) -> Tensor:
    """Omega: orthonormal float32 (width, columns of the sketch), the same in every run."""
    generator = torch.Generator().manual_seed(width)
    columns = sketch_columns(width, directions)
    normal = torch.randn(width, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q.float()


def _of_one(sketch: Tensor, squares: Tensor, directions: int) -> InputDirections:
    y = sketch.cpu().double()
    omega = _test_matrix(y.shape[0], directions).double()
    # Makes the small matrix definite; taken off again from what comes out.
    shift = torch.finfo(torch.float32).eps * y.norm() + torch.finfo(torch.float64).tiny
    shifted = y + shift * omega
    small = omega.T @ shifted
    factor = torch.linalg.cholesky((small + small.T) / 2, upper=True)
    vectors, roots, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(factor, shifted, upper=True, left=False), full_matrices=False
    )
    energies = (roots.square() - shift).clamp_min(0)[:directions]
    vectors = vectors[:, :directions].T
    rest = squares.cpu().double() - energies @ vectors.square()
    return InputDirections(
        *(t.float().to(squares.device) for t in (vectors, energies, rest.clamp_min(0)))
    )
