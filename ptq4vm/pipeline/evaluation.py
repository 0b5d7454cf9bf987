"""Evaluation of a network on evaluation clips."""

from collections.abc import Sequence

import lightning.pytorch as L

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.metrics import Protocol, choose_protocol
from ptq4vm.phases import MattingModule
from ptq4vm.phases.scoring import Scoring
from ptq4vm.types import FrameModel


def evaluate(
    network: FrameModel,
    data: VideoMattingDataModule,
    scoring: Scoring = "float",
    accelerator: str = "auto",
    callbacks: Sequence[L.Callback] = (),
    protocol: Protocol | None = None,
) -> dict[str, float]:
    """Score a network on the evaluation clips of a datamodule.

    Args:
        network: Float, quantized or exported network.
        data: Evaluation clips, with true alpha or with the float network's alpha from
            :meth:`VideoMattingDataModule.add_references`.
        scoring: ``float``, or ``png8`` for mattes truncated to 8 bits.
        accelerator: Lightning's accelerator.
        callbacks: Lightning callbacks, e.g. :class:`ptq4vm.phases.callbacks.AlphaWriter`.
        protocol: ``lr``, or ``hr`` without ``conn``; by default
            :func:`~ptq4vm.metrics.choose_protocol` for the size of the clips.

    Returns:
        Metrics by name: ``mad``, ``mse``, ``grad``, ``conn`` and ``dtssd``, scaled as in the RVM
        paper; ``mad_to_float`` and ``dtssd_to_float`` where the float network's mattes are known.

    Raises:
        PTQ4VMError: There are no evaluation clips, or no alpha to score against.

    Example:
        >>> from ptq4vm import VideoMattingDataModule, evaluate, load_model
        >>> from ptq4vm.calibration import make_teacher
        >>> network = load_model("rvm_mobilenetv3")
        >>> data = VideoMattingDataModule(height=64, width=96, eval_clips=1, eval_frames=2)
        >>> data.attach(make_teacher(network))  # cuts out the person of the built-in clips
        >>> metrics = evaluate(network, data, accelerator="cpu")  # doctest: +ELLIPSIS
        Testing ...
        >>> sorted(metrics)
        ['conn', 'dtssd', 'grad', 'mad', 'mse']
    """
    if protocol is None:
        data.setup("test")
        protocol = choose_protocol(*data.evaluation_set[0].src.shape[-2:])
    module = MattingModule(network, scoring, protocol)
    trainer = L.Trainer(accelerator=accelerator, devices=1, logger=False, callbacks=list(callbacks))
    results = trainer.test(module, datamodule=data, verbose=False)[0]
    return {key.removeprefix("test/"): value for key, value in results.items()}
