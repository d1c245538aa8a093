# SPDX-License-Identifier: Apache-2.0
"""The refiner of a bundle: sparse network and ensembler, and their weights on disk.

Shape legend: N selected pixels; C classes.
"""

from __future__ import annotations

from torch import nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import RefinerSpec
from sparserefine_ros.ensemble import make_ensembler
from sparserefine_ros.errors import BundleError
from sparserefine_ros.sparse.pointnet import PointNet
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.weights import load_weights


class Refiner(nn.Module):
    """Extractor, which sees full-resolution pixels, and ensembler, which fuses.

    Args:
        spec: a bundle's `refiner` section.
        channels: features per pixel I, see `BundleSpec.refiner_channels`.
        classes: C.

    Attributes:
        extractor: features [N, I] and a plan -> refined logits [N, C].
        ensembler: dense and refined logits [N, C] -> fused logits [N, C].
    """

    def __init__(self, spec: RefinerSpec, channels: int, classes: int) -> None:
        super().__init__()
        self.extractor: SparseUNet | PointNet
        if spec.kind == "unet":
            self.extractor = SparseUNet(channels, classes, widths=spec.widths, blocks=spec.blocks)
        else:
            self.extractor = PointNet(channels, classes, widths=spec.widths)
        self.ensembler = make_ensembler(spec.ensembler, classes)


def load_refiner(bundle: Bundle) -> Refiner:
    """Build the refiner of a bundle with its weights, in evaluation mode.

    Raises:
        BundleError: no refiner in the bundle, or weights that do not fit its description.
    """
    spec = refiner_spec(bundle)
    refiner = Refiner(spec, bundle.spec.refiner_channels(), len(bundle.spec.classes))
    load_weights(refiner, bundle.path(spec.file), section="refiner")
    return refiner.eval()


def refiner_spec(bundle: Bundle) -> RefinerSpec:
    """A bundle's section of that name.

    Raises:
        BundleError: it has none.
    """
    if bundle.spec.refiner is None:
        raise BundleError(f"{bundle.name} has no refiner; train one: sparserefine train refiner")
    return bundle.spec.refiner
