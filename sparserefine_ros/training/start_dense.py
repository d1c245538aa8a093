# SPDX-License-Identifier: Apache-2.0
"""Starts a dense network from the ONNX file of one that is trained already.

The file holds one weight and one bias for each convolution: batch norms were folded into them when
it was written. Unfolded again, a norm undoes the statistics that it measures, so that the network
computes what the file does, and can be trained on.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.errors import BackendError, ConfigurationError
from sparserefine_ros.zoo.ladder import LadderNet


class _Layer(NamedTuple):
    """A convolution of the network and, where it has no bias of its own, the norm after it."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None


class _Folded(NamedTuple):
    """A convolution of the file: float32 [outputs, inputs / groups, k, k] and [outputs]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@torch.no_grad()
def start_dense_from(
    network: LadderNet, source: Bundle, images: Tensor, *, same_classes: bool
) -> None:
    """Copy the weights of the source's dense model.

    Args:
        network: what is to be trained; changed in place, in evaluation mode afterwards.
        source: a bundle with a dense model that `train dense` made.
        images: network input float32 [B, 3, h, w], typical of the training; the norms take their
            statistics from them.
        same_classes: whether the classifier means the same; otherwise it stays as it was.

    Raises:
        BackendError: the package onnx is not installed.
        ConfigurationError: the source's network is another one.
    """
    layers, folded = _layers_in_order(network, images[:1]), _read(dense_model_file(source))
    if not same_classes:
        layers, folded = _all_but_the_classifier(network, layers, folded)
    shapes = [tuple(layer.conv.weight.shape) for layer in layers]
    if shapes != [weight.shape for weight, _ in folded]:
        raise ConfigurationError(
            f"expected the network of this recipe in {source.folder}, found one with other layers; "
            "give encoder, ladder and features as they were there, or leave out start_from"
        )
    hooks = []
    for layer, (weight, bias) in zip(layers, folded, strict=True):
        layer.conv.weight.copy_(torch.from_numpy(weight))
        if layer.norm is not None:
            hooks.append(_unfold_when_called(layer.norm, torch.from_numpy(bias)))
        elif layer.conv.bias is not None:
            layer.conv.bias.copy_(torch.from_numpy(bias))
    network(images)
    for hook in hooks:
        hook.remove()


def _layers_in_order(network: nn.Module, image: Tensor) -> list[_Layer]:
    """The convolutions in the order in which they are called, which is that of the file."""
    called: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda module, *_, name=name: called.append((name, module)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    network.eval()(image)
    for hook in hooks:
        hook.remove()
    layers = []
    for (name, module), (_, following) in pairwise([*called, ("", network)]):
        if isinstance(module, nn.Conv2d):
            norm = following if isinstance(following, nn.BatchNorm2d) else None
            assert (module.bias is None) == (norm is not None), f"{name}: a bias, or else a norm"
            layers.append(_Layer(name, module, norm))
    return layers


def _all_but_the_classifier(
    network: LadderNet, layers: list[_Layer], folded: list[_Folded]
) -> tuple[list[_Layer], list[_Folded]]:
    last = next(i for i, layer in enumerate(layers) if layer.conv is network.classifier)
    return layers[:last] + layers[last + 1 :], folded[:last] + folded[last + 1 :]


def _unfold_when_called(norm: nn.BatchNorm2d, bias: Tensor) -> torch.utils.hooks.RemovableHandle:
    """Let `norm` measure its next input, and add no more than `bias` to it."""

    def unfold(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        assert norm.running_mean is not None  # zoo norms track them
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_((var + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)

    return norm.register_forward_pre_hook(unfold)


def _read(path: Path) -> list[_Folded]:
    """Weight and bias of every convolution, in the order of the file's nodes."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as err:
        raise BackendError(
            "expected the package onnx to start from a bundle's dense model; run: pip install onnx"
        ) from err
    graph = onnx.load(str(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folded = []
    for node in graph.node:
        # A weight stored as float16, or one that is equal to another.
        if node.op_type in ("Cast", "Identity") and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        elif node.op_type == "Conv":
            weight, *bias = (values.get(name) for name in node.input[1:])
            if weight is None or not bias or bias[0] is None:
                raise ConfigurationError(
                    f"{path}: expected a weight and a bias for the convolution {node.name!r}; "
                    "start_from takes what train dense made"
                )
            folded.append(_Folded(weight.astype(np.float32), bias[0].astype(np.float32)))
    return folded
