"""Mixed-precision bit allocation within a budget of bit operations."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ptq4vm.calibration.layer_errors import Sensitivity, combined_errors
from ptq4vm.calibration.sensitivity import BASE_BITS
from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import canonical_bits, parse_bits

CANDIDATE_BITS = ("W4A8", "W8A8")


def choose_bits(
    sensitivity: Sensitivity,
    base: str = BASE_BITS,
    candidates: Sequence[str] = CANDIDATE_BITS,
    budget: float = 0.10,
) -> dict[str, str]:
    """Choose the layers with more than the base bits that minimize the sum of the layers' errors.

    Solves an integer program: each layer takes the base bits or one of the candidates, with the
    error of :func:`combined_errors` measured at these bits. Layers above the base may take at
    most ``budget`` of all bit operations, Σ MACs × weight bits × activation bits over the
    quantized layers. Layers with fixed bits are not chosen but count towards the budget. The
    objective assumes that the errors of single layers add up.

    Args:
        sensitivity: measured layers.
        base: bits of the layers that are not raised.
        candidates: bits to choose from, above the base.
        budget: maximum share of bit operations in layers above the base, in [0, 1].

    Returns:
        Bits by layer name, without layers at the base bits and without fixed layers.

    Raises:
        PTQ4VMError: invalid bits or budget, fixed layers that exceed the budget, or bits without
            measurements.
    """
    base, candidates = canonical_bits(base), [canonical_bits(one) for one in candidates]
    _require_above(base, candidates)
    require_budget(sensitivity, base, budget)
    free = [layer for layer in sensitivity.layers if layer.fixed is None]
    options = [base, *candidates]
    if not free or not candidates:
        return {}
    errors = combined_errors(free, options, base)
    costs = np.array(
        [[layer.macs * _product(one) for one in options] for layer in free], dtype=float
    )
    # (spent above the base) - budget * (spent in total) <= 0
    load = costs * (np.array([False] + [True] * len(candidates)) - budget)
    # Fixed layers spend part of the budget, or earn some if they lie at or below the base.
    fixed_load = sum(
        layer.macs * _product(layer.fixed) * ((_product(layer.fixed) > _product(base)) - budget)
        for layer in sensitivity.layers
        if layer.fixed is not None
    )
    scale = 1e4 / costs[:, 0].sum()  # the solver's tolerance is absolute
    picks = _solve(errors, load * scale, -fixed_load * scale)
    return {layer.name: options[pick] for layer, pick in zip(free, picks, strict=True) if pick > 0}


def _require_above(base: str, candidates: Sequence[str]) -> None:
    for one in candidates:
        if _product(one) <= _product(base) or any(
            c < b for c, b in zip(*map(parse_bits, (one, base)), strict=True)
        ):
            raise PTQ4VMError(
                f"Expected candidates above the base {base}, got {one}. Choose e.g. W4A8 or W8A8."
            )


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


def require_budget(sensitivity: Sensitivity, base: str, budget: float) -> None:
    """Check that the fixed layers don't exceed the budget; requires no measurements.

    Raises:
        PTQ4VMError: they do, or the budget isn't in [0, 1].
    """
    if not 0.0 <= budget <= 1.0:
        raise PTQ4VMError(
            f"Expected a budget in [0, 1], the share of bit operations, got {budget}. Try 0.1."
        )
    share = share_above(sensitivity, base, {})
    if share > budget:
        names = ", ".join(
            f"{layer.name} {layer.fixed}"
            for layer in sensitivity.layers
            if _product(layer.fixed or base) > _product(base)
        )
        raise PTQ4VMError(
            f"Expected a budget of at least {share:.4f}, which the layers of fixed bits already "
            f"take ({names}), got {budget}. Raise the budget, or lower first_last_bits or "
            "layer_bits."
        )


def share_above(sensitivity: Sensitivity, base: str, bits: Mapping[str, str]) -> float:
    """Return the share of all bit operations in layers above the base, for the chosen bits."""
    costs = [
        (layer.macs, _product(layer.fixed or bits.get(layer.name, base)))
        for layer in sensitivity.layers
    ]
    total = sum(macs * product for macs, product in costs)
    return sum(macs * product for macs, product in costs if product > _product(base)) / total


def _product(bits: str) -> int:
    # Bit operations of one multiply-accumulate.
    weight_bits, activation_bits = parse_bits(bits)
    return weight_bits * activation_bits
