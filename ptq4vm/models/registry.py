"""Model registry."""

import copy
import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.models.download import Report, fetch_weights
from ptq4vm.models.weights import load_weights

Factory = TypeVar("Factory", bound=Callable[..., MattingModel])
_FACTORIES: dict[str, Callable[..., MattingModel]] = {}


def register_model(name: str) -> Callable[[Factory], Factory]:
    """Return a decorator that registers a model factory for :func:`create_model`.

    The decorated class or function must return a :class:`MattingModel`.

    Raises:
        PTQ4VMError: The name is already registered.
    """
    if name in _FACTORIES:
        raise PTQ4VMError(
            f"Expected a new name for a network, got {name!r}, which is taken. Choose another."
        )

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


class _Copies:
    """Factory that returns copies of a network."""

    def __init__(self, network: MattingModel) -> None:
        self.network = network

    def __call__(self, downsample_ratio: float = 1.0) -> MattingModel:
        network = copy.deepcopy(self.network)
        network.downsample_ratio = downsample_ratio
        return network


def register_copies(network: MattingModel) -> None:
    """Register a network in memory under its name; :func:`create_model` copies it.

    Another one that was registered so under the same name is replaced.

    Raises:
        PTQ4VMError: The name is registered otherwise.
    """
    if isinstance(_FACTORIES.get(network.name), _Copies):
        del _FACTORIES[network.name]
    register_model(network.name)(_Copies(network))


def list_models() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def create_model(
    name: str, weights: str | Path | None = None, *, report: Report | None = None, **kwargs: Any
) -> MattingModel:
    """Create a network in eval mode with frozen parameters, ready for quantization.

    Args:
        name: One of :func:`list_models`.
        weights: None for random weights, ``official`` for the published ones (downloaded if not
            cached), or a weights file.
        report: Callback that receives one line of text per download message.
        kwargs: Arguments of the network, e.g. ``downsample_ratio``.

    Raises:
        PTQ4VMError: The name or an argument is unknown, or the weights are unavailable or do not
            fit.

    Example:
        >>> import torch
        >>> from ptq4vm.models import create_model
        >>> network = create_model("rvm_mobilenetv3", downsample_ratio=0.5)  # random weights
        >>> src = torch.rand(1, 3, 64, 96)
        >>> state = network.initial_state(src)
        >>> len(state), tuple(state[0].shape)
        (4, (1, 16, 16, 24))
        >>> tuple(network.forward_frame(src, state).pha.shape)
        (1, 1, 64, 96)
    """
    if name not in _FACTORIES:
        close = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = (
            f"Did you mean {close[0]}?"
            if close
            else "Choose one of those, or register it with register_model or from_module first."
        )
        raise PTQ4VMError(
            f"Expected a network's name ({', '.join(list_models())}), got {name!r}. {hint}"
        )
    factory = _FACTORIES[name]
    try:
        # Bound before the call, so that a TypeError inside the factory isn't taken for a wrong
        # name.
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise PTQ4VMError(
            f"Expected arguments that {name} takes, got {', '.join(kwargs)}: {error}. Correct the "
            "argument."
        ) from error
    network = factory(**kwargs)
    if weights is not None:
        load_weights(
            network, fetch_weights(name, report=report) if weights == "official" else weights
        )
    return network.eval().requires_grad_(False)


def float_network(
    network: str | MattingModel, weights: str | Path = "official", downsample_ratio: float = 1.0
) -> MattingModel:
    """Return the float network, made from its name unless it is given in memory.

    Args:
        network: registry name, or a network.
        weights: ``official``, or a file of float weights; only with a name.
        downsample_ratio: fraction of the frame's size at which the network's body works; only with
            a name.

    Raises:
        PTQ4VMError: A network in memory is quantized, isn't of a registered name, or is given with
            ``weights`` or ``downsample_ratio``; or as for :func:`create_model`.
    """
    if weights is None:
        raise PTQ4VMError("Expected weights, official or a file, got none. Leave weights out.")
    if isinstance(network, str):
        return create_model(network, weights=weights, downsample_ratio=downsample_ratio)
    if (weights, downsample_ratio) != ("official", 1.0):
        raise PTQ4VMError(
            f"Expected a network in memory to have its weights and downsample_ratio, got weights "
            f"{weights} and downsample_ratio {downsample_ratio:g} beside it. Leave them out."
        )
    if network.qconfig is not None:
        raise PTQ4VMError(
            f"Expected a float network, got {network.name} quantized. Give the network that it was "
            "made from."
        )
    if network.name not in list_models():
        raise PTQ4VMError(
            f"Expected a network of a registered name ({', '.join(list_models())}), by which its "
            f"checkpoints are read, got {network.name!r}. Decorate its class with register_model."
        )
    return network
