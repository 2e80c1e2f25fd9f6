"""From a chart to the figure of a page: drawn for two widths, with its legend and its table."""

from __future__ import annotations

from gpualloc.report.blocks import Figure, Table
from gpualloc.report.charts import BarChart, LaneChart, LineChart

FULL_PX, HALF_PX, _NARROW_PX = 900.0, 500.0, 330.0


def figure(
    chart: LineChart | BarChart | LaneChart,
    *,
    name: str,
    title: str,
    caption: str,
    table: Table,
    command: str | None = None,
    wide_px: float = FULL_PX,
) -> Figure:
    """Drawn about as wide as it will be shown, so that its texts keep their size.

    Args:
        name: unique in the page; of letters, figures and hyphens.
    """
    return Figure(
        title=title,
        caption=caption,
        wide=chart.svg(width_px=wide_px, title=title, description=caption, name=f"{name}-w"),
        narrow=chart.svg(width_px=_NARROW_PX, title=title, description=caption, name=f"{name}-n"),
        legend=chart.legend(),
        table=table,
        command=command,
    )
