# SPDX-License-Identifier: Apache-2.0
"""Table 1 of SparseRefine (Liu et al., ECCV 2024): the paper's figures, and why ours differ.

Sizes are (h, w); parameters in millions, MACs in 10^12, latencies in milliseconds on an RTX 3090 in
half precision with batches of four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Size = tuple[int, int]

FULL_SIZE: Final[Size] = (1024, 2048)
CLASSES: Final = 19
SIX_LEVELS: Final = (32, 64, 128, 256, 512, 1024)
FIVE_LEVELS: Final = SIX_LEVELS[:5]


@dataclass(frozen=True)
class PaperRow:
    """A dense model alone, or refined.

    Attributes:
        parameters: in millions, one decimal.
        macs: in 10^12, two decimals.
        latency_ms: per picture.
    """

    parameters: float
    macs: float
    latency_ms: float


@dataclass(frozen=True)
class PaperModel:
    """A dense model of the table.

    Attributes:
        title: its name in the paper.
        full, low, refined: at full resolution, at low resolution, and refined.
        low_size: the low resolution.
        widths: levels of its refiner.
        parameter_note, mac_note: why a count may differ from the paper's.
    """

    title: str
    full: PaperRow
    low: PaperRow
    refined: PaperRow
    low_size: Size = (512, 1024)
    widths: tuple[int, ...] = SIX_LEVELS
    parameter_note: str = ""
    mac_note: str = ""


REFINER_NOTE: Final = (
    "One density for all models; the paper's differ and are given for HRNet-W48 only. Its refined "
    "less its low MACs are 0.19, 0.21, 0.23, 0.42 and 0.16 T from the first model to the last. At "
    "equal density MACs grow with the number of neighbours that a site has."
)
_MASK2FORMER: Final = (
    "Backbone and decoders have the published sizes (docs/zoo.md takes them apart); the paper "
    "leaves 9.2 M beside the backbone for Swin-T and 11.8 M for Swin-L, where the architecture "
    "has 19.9 M and 20.3 M. Not explained."
)
_MASK2FORMER_MACS: Final = (
    "Short by 0.09 T for Swin-T and Swin-L alike at full resolution, so the difference lies "
    "outside the backbone. Not explained."
)

PAPER: Final[Mapping[str, PaperModel]] = {
    "hrnet-w48": PaperModel(
        "HRNet-W48",
        PaperRow(65.9, 0.75, 53.4),
        PaperRow(65.9, 0.19, 14.5),
        PaperRow(145.2, 0.38, 32.4),
    ),
    "segformer-b5": PaperModel(
        "SegFormer-B5",
        PaperRow(82.0, 1.16, 140.6),
        PaperRow(82.0, 0.17, 18.5),
        PaperRow(161.3, 0.38, 38.5),
    ),
    "mask2former-t": PaperModel(
        "Mask2Former-T",
        PaperRow(36.7, 0.62, 66.8),
        PaperRow(36.7, 0.16, 19.1),
        PaperRow(56.5, 0.39, 44.8),
        widths=FIVE_LEVELS,
        parameter_note=_MASK2FORMER,
        mac_note=_MASK2FORMER_MACS,
    ),
    "mask2former-l": PaperModel(
        "Mask2Former-L",
        PaperRow(207.0, 1.99, 150.8),
        PaperRow(207.0, 0.51, 45.4),
        PaperRow(286.3, 0.93, 89.9),
        parameter_note=_MASK2FORMER,
        mac_note=_MASK2FORMER_MACS,
    ),
    "segnext-l": PaperModel(
        "SegNeXt-L",
        PaperRow(48.8, 0.53, 86.3),
        PaperRow(48.8, 0.21, 33.6),
        PaperRow(128.1, 0.37, 50.9),
        low_size=(640, 1280),
        mac_note=(
            "Counted with the rank of the Hamburger in MMSegmentation's configuration, 16; rank 64 "
            "gives 0.553 T at full resolution, so 0.53 T lies between. The paper does not say."
        ),
    ),
}
