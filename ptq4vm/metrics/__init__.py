"""Matting metrics: per-frame functions and torchmetrics classes."""

from ptq4vm.metrics.classes import (
    DTSSD,
    MAD,
    MSE,
    Conn,
    Grad,
    Protocol,
    Scoring,
    choose_protocol,
    fidelity_metrics,
    matting_metrics,
)
from ptq4vm.metrics.functional import conn, dtssd, grad, mad, mse, to_png8

__all__ = [
    "DTSSD",
    "MAD",
    "MSE",
    "Conn",
    "Grad",
    "Protocol",
    "Scoring",
    "choose_protocol",
    "conn",
    "dtssd",
    "fidelity_metrics",
    "grad",
    "mad",
    "matting_metrics",
    "mse",
    "to_png8",
]
