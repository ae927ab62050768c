"""Line charts as SVG text that a page can hold: no scripts, no fonts, no files."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 26, 30
# Told apart by most colour-blind people as well.
COLORS = ("#1f6feb", "#d9730d", "#1a936f", "#b83280", "#6e56cf", "#8a6d3b")
TICKS = 5


def line_chart(series: Mapping[str, Points], title: str, x_label: str = "iteration") -> str:
    """Return an `<svg>` of one line for each series, with axes, grid, and a legend if there are several.

    Args:
        series: name -> (x, y) points in order of x; values that are not finite are left out. A series of
            one point is a dot.
        title: what is shown, for those who cannot see it.
        x_label: what x is.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_ticks, y_ticks = nice_ticks(0.0, max(xs)), nice_ticks(min(0.0, *ys), max(ys))
    # The lowest and highest tick of y are the frame; x ends where the data end.
    x_span, y_span = (0.0, max(max(xs), 1e-9)), (y_ticks[0], y_ticks[-1])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title>",
        *_axes([t for t in x_ticks if t <= x_span[1]], y_ticks, x_span, y_span, x_label),
    ]
    for color, points in zip(_endless_colors(len(finite)), finite.values(), strict=True):
        parts.append(_line(points, color, x_span, y_span))
    if len(finite) > 1:
        parts += _legend(list(finite))
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Return about `count` round numbers, equally far apart, from at most `low` to at least `high`."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil((low + span) / step - 1e-9), first + 1)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    x_label: str,
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = _y(tick, y_span)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = _x(tick, x_span)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    end = WIDTH - RIGHT
    parts.append(f'<text x="{end}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>')
    return parts


def _line(points: Points, color: str, x_span: tuple[float, float], y_span: tuple[float, float]) -> str:
    if len(points) == 1:
        x, y = _x(points[0][0], x_span), _y(points[0][1], y_span)
        return f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>'
    path = " ".join(f"{_x(x, x_span)},{_y(y, y_span)}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    room = (WIDTH - LEFT - RIGHT) / max(len(names), 4)
    for column, (name, color) in enumerate(zip(names, _endless_colors(len(names)), strict=True)):
        x = round(LEFT + column * room, 1)
        parts.append(f'<rect x="{x}" y="9" width="12" height="3" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="14">{escape(name)}</text>')
    return parts


def _endless_colors(count: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(count)]


def _x(value: float, span: tuple[float, float]) -> float:
    return round(LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, span: tuple[float, float]) -> float:
    return round(HEIGHT - BOTTOM - (value - span[0]) / (span[1] - span[0]) * (HEIGHT - TOP - BOTTOM), 1)
