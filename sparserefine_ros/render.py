# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: labels over the image, entropy, refined pixels, legend, contact sheet.

Shapes: H, W picture. Pictures are uint8 [H, W, 3] in RGB order, row 0 at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

REFINED_COLOUR: Final = (255, 140, 0)
# Told apart with any kind of colour vision (Okabe and Ito, 2008).
FIXED_COLOUR: Final = (0, 178, 130)
BROKEN_COLOUR: Final = (230, 80, 0)
STILL_WRONG_COLOUR: Final = (150, 150, 150)

_SHADOW: Final = 0.35  # share of full light taken beside an outline, to show it on a bright sky
_DIMMED: Final = 0.45
_PAPER: Final = 255
_INK: Final = (30, 30, 30)
_SHEET: Final = 24
_SHEET_INK: Final = (235, 235, 235)
_GAP: Final = 8
_LINE: Final = 28
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE: Final = 0.5


def draw_overlay(
    image: Picture,
    labels: NDArray[np.uint8],
    palette: NDArray[np.uint8],
    *,
    refined: NDArray[np.bool_] | None = None,
    opacity: float = 0.5,
) -> Picture:
    """Lay the colours of the labels over a picture and outline the refined pixels in white.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], rows of the palette.
        palette: uint8 [256, 3], RGB.
        refined: bool [H, W]; None for no outline.
        opacity: of the colours, 0 .. 1.

    Returns:
        a new uint8 [H, W, 3], RGB.

    Raises:
        ValueError: a map is not of the picture's size, or the opacity is out of range.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"expected an opacity of 0 .. 1, got {opacity}")
    _check_map("labels", labels, image)
    colours = cv2.applyColorMap(labels, np.ascontiguousarray(palette).reshape(256, 1, 3))
    overlay = cv2.addWeighted(image, 1.0 - opacity, colours, opacity, 0.0)
    if refined is not None:
        _check_map("refined", refined, image)
        _outline(overlay, refined)
    return _picture(overlay)


def draw_entropy(entropy: NDArray[np.float32], *, max_nats: float) -> Picture:
    """Draw entropy from black over red to pale yellow.

    Args:
        entropy: float32 [H, W], nats.
        max_nats: shown brightest, usually log(C); what is above looks the same.

    Raises:
        ValueError: max_nats is not positive.
    """
    if not max_nats > 0.0:
        raise ValueError(f"expected max_nats above 0, got {max_nats}; log(C) for C classes")
    levels = cv2.convertScaleAbs(entropy, alpha=255.0 / max_nats)
    return _picture(cv2.applyColorMap(levels, _INFERNO))


def draw_refined(image: Picture, refined: NDArray[np.bool_]) -> Picture:
    """Show the refined pixels in orange on a dimmed grey picture.

    Args:
        image: uint8 [H, W, 3], RGB.
        refined: bool [H, W].

    Raises:
        ValueError: the map is not of the picture's size.
    """
    _check_map("refined", refined, image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # Refined pixels keep the picture's light and shade within the colour.
    drawn = cv2.applyColorMap(grey, _ORANGES)
    dimmed = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=_DIMMED), cv2.COLOR_GRAY2RGB)
    cv2.copyTo(drawn, _mask(refined), dimmed)
    return _picture(dimmed)


def draw_changes(
    truth: NDArray[np.uint8],
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    *,
    ignored_label: int = 255,
) -> Picture:
    """Show what became right in green, what became wrong in red, what stayed wrong in grey.

    What was right all along is dark, what is unlabelled black.

    Args:
        truth: uint8 [H, W], class ids.
        before: uint8 [H, W], class ids of one result.
        after: uint8 [H, W], class ids of the other.
        ignored_label: in the truth, where it is unlabelled.
    """
    picture = np.full((*truth.shape, 3), _SHEET, np.uint8)
    was_right, is_right = before == truth, after == truth
    picture[is_right & ~was_right] = FIXED_COLOUR
    picture[was_right & ~is_right] = BROKEN_COLOUR
    picture[~is_right & ~was_right] = STILL_WRONG_COLOUR
    picture[truth == ignored_label] = 0
    return picture


def narrow(picture: Picture, width: int, height: int | None = None) -> Picture:
    """Shrink a picture, uint8 [H, W, 3], in proportion.

    Args:
        picture: returned as it is where it fits.
        width: pixels across at most.
        height: pixels from top to bottom at most; None for any number.
    """
    tall, wide = picture.shape[:2]
    share = min(1.0, width / wide, 1.0 if height is None else height / tall)
    if share == 1.0:
        return picture
    size = (max(1, round(wide * share)), max(1, round(tall * share)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def draw_legend(names: Sequence[str], colours: NDArray[np.uint8]) -> Picture:
    """Draw a list of class names with their colours.

    Args:
        names: in label order.
        colours: uint8 [len(names) or more, 3], RGB, such as a bundle's palette.
    """
    swatch = 2 * _LINE
    width = swatch + 3 * _GAP + max((_text_width(name) for name in names), default=0)
    legend = np.full((len(names) * _LINE + 2 * _GAP, width, 3), _PAPER, np.uint8)
    for index, name in enumerate(names):
        top = _GAP + index * _LINE
        box = (_GAP, top + 3, swatch, _LINE - 6)
        cv2.rectangle(legend, box, colours[index].tolist(), cv2.FILLED)
        cv2.rectangle(legend, box, (160, 160, 160), 1)
        _write(legend, name, swatch + 2 * _GAP, top, _INK)
    return legend


def contact_sheet(
    pictures: Sequence[Picture], *, columns: int, captions: Sequence[str] = ()
) -> Picture:
    """Arrange pictures in rows on a dark sheet, each at its own size, with captions below.

    Args:
        pictures: uint8 [H, W, 3] each, RGB, of any sizes; at least one.
        columns: pictures in a row.
        captions: one for each picture, or none; cut where they are too wide.

    Raises:
        ValueError: no picture, fewer than one column, or another number of captions.
    """
    if not pictures or columns < 1 or len(captions) not in (0, len(pictures)):
        raise ValueError(
            "expected at least one picture, at least one column and no or as many captions, got "
            f"{len(pictures)} pictures, {columns} columns, {len(captions)} captions"
        )
    cell_width = max(picture.shape[1] for picture in pictures)
    rows = []
    for start in range(0, len(pictures), columns):
        some = slice(start, start + columns)
        rows.append(_sheet_row(pictures[some], captions[some], columns, cell_width))
    sheet = np.full((_GAP, rows[0].shape[1], 3), _SHEET, np.uint8)
    return np.concatenate([sheet, *rows])


def _sheet_row(
    pictures: Sequence[Picture], captions: Sequence[str], columns: int, cell_width: int
) -> Picture:
    cell_height = max(picture.shape[0] for picture in pictures)
    height = cell_height + (_LINE if captions else _GAP)
    row = np.full((height, columns * (cell_width + _GAP) + _GAP, 3), _SHEET, np.uint8)
    for index, picture in enumerate(pictures):
        left = _GAP + index * (cell_width + _GAP)
        x = left + (cell_width - picture.shape[1]) // 2
        y = (cell_height - picture.shape[0]) // 2
        row[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        if captions:
            _write(row, _shorten(captions[index], cell_width), left, cell_height, _SHEET_INK)
    return row


def _outline(picture: NDArray[Any], refined: NDArray[np.bool_]) -> None:
    """Draw the rim of the refined areas white inside and dark outside, in place."""
    # Wide enough to be seen when a large picture is shown on a screen.
    side = 2 * max(1, round(picture.shape[1] / 1400)) + 1
    kernel = np.ones((side, side), np.uint8)
    mask = _mask(refined)
    rim = cv2.subtract(mask, cv2.erode(mask, kernel))
    shadow = cv2.convertScaleAbs(cv2.subtract(cv2.dilate(mask, kernel), mask), alpha=_SHADOW)
    cv2.add(picture, cv2.cvtColor(rim, cv2.COLOR_GRAY2RGB), picture)
    cv2.subtract(picture, cv2.cvtColor(shadow, cv2.COLOR_GRAY2RGB), picture)


def _check_map(name: str, values: NDArray[Any], image: Picture) -> None:
    if values.shape != image.shape[:2]:
        raise ValueError(
            f"expected {name} {list(image.shape[:2])} like the picture, got {list(values.shape)}"
        )


def _mask(where: NDArray[np.bool_]) -> NDArray[Any]:
    """Uint8 [H, W], 255 where true."""
    return cv2.convertScaleAbs(np.ascontiguousarray(where).view(np.uint8), alpha=255.0)


def _picture(array: NDArray[Any]) -> Picture:
    return np.asarray(array, np.uint8)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0])


def _shorten(text: str, width: int) -> str:
    if _text_width(text) <= width:
        return text
    while text and _text_width(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _write(picture: Picture, text: str, left: int, top: int, colour: tuple[int, int, int]) -> None:
    """Write a line of height _LINE whose upper left corner is given."""
    at = (left, top + 19)
    cv2.putText(picture, text, at, _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)


def _oranges() -> Picture:
    """Table uint8 [256, 1, 3] from a dark to a pale orange."""
    share = np.linspace(0.45, 1.0, 256)[:, None, None]
    return _picture(share * np.array(REFINED_COLOUR))


_ORANGES: Final = _oranges()
_INFERNO: Final = np.ascontiguousarray(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[..., ::-1]
)
