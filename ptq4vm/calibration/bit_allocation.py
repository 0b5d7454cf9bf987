"""Mixed-precision bit allocation within a budget of bit operations."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ptq4vm.calibration.layer_errors import Sensitivity, combined_errors
from ptq4vm.calibration.sensitivity import BASE_BITS
from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import canonical_bits, parse_bits

CANDIDATE_BITS = ("W3A4", "W4A8", "W8A8")


def choose_bits(
    sensitivity: Sensitivity,
    base: str = BASE_BITS,
    candidates: Sequence[str] = CANDIDATE_BITS,
    budget: float = 0.0,
) -> dict[str, str]:
    """Choose the bits of each layer that minimize the sum of the layers' errors.

    Solves an integer program: each layer takes the base bits or one of the candidates, with the
    error of :func:`combined_errors` measured at these bits. All layers together take at most the
    bit operations, Σ MACs × weight bits × activation bits, that they take at the base bits, plus
    ``budget``: layers below the base pay for those above. Layers with fixed bits are not chosen.
    The objective assumes that the errors of single layers add up.

    Args:
        sensitivity: measured layers.
        base: bits of the layers that are not changed.
        candidates: other bits to choose from.
        budget: bit operations to add, as a share of those of all layers at the base bits, the
            fixed ones included.

    Returns:
        Bits by layer name, without layers at the base bits and without fixed layers.

    Raises:
        PTQ4VMError: invalid bits, a negative budget, or bits without measurements.
    """
    base, candidates = canonical_bits(base), [canonical_bits(one) for one in candidates]
    require_budget(budget)
    free = [layer for layer in sensitivity.layers if layer.fixed is None]
    options = [base, *(one for one in candidates if one != base)]
    if not free or len(options) == 1:
        return {}
    errors = combined_errors(free, options, base)
    macs = np.array([layer.macs for layer in free], dtype=float)
    added = macs[:, None] * (np.array([_product(one) for one in options]) - _product(base))
    fixed = [(layer.macs, layer.fixed) for layer in sensitivity.layers if layer.fixed is not None]
    whole = macs.sum() * _product(base) + sum(count * _product(bits) for count, bits in fixed)
    scale = 1e4 / whole  # the solver's tolerance is absolute
    picks = _solve(errors, added * scale, budget * whole * scale)
    return {layer.name: options[pick] for layer, pick in zip(free, picks, strict=True) if pick > 0}


def _solve(errors: np.ndarray, load: np.ndarray, limit: float) -> np.ndarray:
    """Choose one option for each layer: least sum of errors, sum of loads within the limit.

    Args:
        errors: (layers, options).
        load: (layers, options).
        limit: maximum sum of the chosen loads.

    Returns:
        Indices of the options, (layers,).
    """
    # One 0/1 variable for each layer and option; those of a layer add up to 1.
    one_each = np.kron(np.eye(len(errors)), np.ones(errors.shape[1]))
    solution = milp(
        errors.ravel(),
        integrality=np.ones(errors.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(load.ravel()[None], -np.inf, limit),
        ],
        # Presolve is no faster here, and some HiGHS releases print to the terminal after it.
        options={"mip_rel_gap": 0.0, "presolve": False},
    )
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    return solution.x.reshape(errors.shape).argmax(1)


def require_budget(budget: float) -> None:
    """Check that a budget is not negative.

    Raises:
        PTQ4VMError: it is.
    """
    if not budget >= 0.0:
        raise PTQ4VMError(
            f"Expected a budget of at least 0, the share of bit operations to add, got {budget}. "
            "Try 0."
        )


def _product(bits: str) -> int:
    # Bit operations of one multiply-accumulate.
    weight_bits, activation_bits = parse_bits(bits)
    return weight_bits * activation_bits
