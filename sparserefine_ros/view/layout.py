# SPDX-License-Identifier: Apache-2.0
"""What is recorded under which name, and how the viewer lays it out."""

from __future__ import annotations

from typing import Any, Final

from sparserefine_ros.view.library import rerun_module

FRAME: Final = "frame"
STAMP: Final = "stamp"

PICTURE: Final = "picture"
LABELS: Final = "picture/labels"
DENSE_LABELS: Final = "picture/dense_labels"
REFINED: Final = "picture/refined"
OUTLINE: Final = "picture/outline"
ENTROPY: Final = "entropy"
LEGEND: Final = "legend"
NUMBERS: Final = "numbers"
SHARE: Final = "plots/refined_percent"
MEAN_ENTROPY: Final = "plots/mean_entropy_nats"
ENTROPY_BEFORE: Final = f"{MEAN_ENTROPY}/before"
ENTROPY_AFTER: Final = f"{MEAN_ENTROPY}/after"
LATENCY: Final = "plots/latency_ms"
TOTAL: Final = "total"

# The legend of a plot holds few lines; the table beside the picture tells all stages.
_PLOTTED: Final = (TOTAL, "dense", "plan", "refine", "fusion")


def make_layout(*, fps: float) -> Any:
    """A blueprint: pictures to compare at the left, what was unsure at the right, plots below.

    Args:
        fps: at which frames are played.

    Raises:
        BackendError: the library rerun is not installed.
    """
    blueprint = rerun_module("rerun.blueprint")
    hidden = blueprint.EntityBehavior(visible=False)

    def picture(name: str, *layers: str, switched_off: tuple[str, ...] = ()) -> Any:
        return blueprint.Spatial2DView(
            origin=PICTURE,
            name=name,
            contents=[PICTURE, *layers],
            overrides=dict.fromkeys(switched_off, hidden),
        )

    compared = blueprint.Tabs(
        picture("Labels", LABELS, OUTLINE, REFINED, switched_off=(REFINED,)),
        picture("Before refinement", DENSE_LABELS, OUTLINE),
        picture("Picture"),
    )
    unsure = blueprint.Vertical(
        blueprint.Spatial2DView(origin=ENTROPY, name="Entropy, nats"),
        picture("Refined pixels", REFINED),
    )
    explained = blueprint.Vertical(
        blueprint.Spatial2DView(origin=LEGEND, name="Classes"),
        blueprint.TextDocumentView(origin=NUMBERS, name="This frame"),
        row_shares=[1, 1],
    )
    plots = blueprint.Horizontal(
        blueprint.TimeSeriesView(origin=SHARE, name="Refined, % of the pixels"),
        blueprint.TimeSeriesView(origin=MEAN_ENTROPY, name="Mean entropy, nats"),
        blueprint.TimeSeriesView(
            origin=LATENCY,
            name="Latency, ms",
            contents=[f"{LATENCY}/{stage}" for stage in _PLOTTED],
            plot_legend=blueprint.Corner2D.LeftTop,
        ),
        column_shares=[2, 2, 3],
    )
    return blueprint.Blueprint(
        blueprint.Vertical(
            blueprint.Horizontal(compared, unsure, explained, column_shares=[8, 4, 2]),
            plots,
            row_shares=[5, 2],
        ),
        blueprint.BlueprintPanel(state="collapsed"),
        blueprint.SelectionPanel(state="collapsed"),
        blueprint.TimePanel(state="collapsed", timeline=FRAME, fps=fps),
        auto_views=False,
    )
