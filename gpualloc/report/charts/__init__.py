"""Charts as SVG: geometry worked out here, colours by the classes of the page's style sheet, so that they follow its theme.

Series are told apart by colour, marker and dash (Okabe and Ito 2008, "Color Universal Design"). All text is escaped by markupsafe.
"""

from gpualloc.report.charts.bars import Bar, BarChart, Part
from gpualloc.report.charts.lanes import Lane, LaneChart, Span
from gpualloc.report.charts.lines import LineChart, Point, Reference, Series
from gpualloc.report.charts.scale import NUM_COLOURS

__all__ = ["NUM_COLOURS", "Bar", "BarChart", "Lane", "LaneChart", "LineChart", "Part", "Point", "Reference", "Series", "Span"]
