"""The confusion matrix of a page: plain SVG with class names, and a script that names the cell under the pointer."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.data.lettering.text import shorten
from mtl_jax.report.html import text

LEVELS = 10  # shades of a rate
LARGEST_CELL, SMALLEST_CELL, SMALLEST_NAMED = (
    44,
    4,
    9,
)  # pixels; below the last only the pointer names classes
WANTED = 900  # pixels of the matrix's side where the limits of a cell allow it
LONGEST = 22  # letters of a name on an axis
STYLE = """
.confusion svg { display: block; touch-action: pan-x pan-y } .confusion svg text { fill: var(--ink) }
.confusion path, .confusion .swatch { fill: var(--mark) } .confusion .zero { fill: var(--paper) }
.confusion .diagonal { fill: var(--pale) } .confusion .hatch { stroke: var(--pale); stroke-width: .8 }
.confusion .area { fill: url(#never); stroke: var(--line) }
.confusion .cross { fill: none; stroke: var(--ink); stroke-width: 1.5; pointer-events: none }
.confusion output { display: block; min-height: 3.1em; padding: .2rem 0 }
.legend span { margin-right: 1.2rem; white-space: nowrap } .legend svg { display: inline-block; vertical-align: -2px; margin-right: .3rem }
"""  # noqa: E501
SCRIPT = """
for (const figure of document.querySelectorAll('.confusion')) {
  const data = JSON.parse(figure.querySelector('script').textContent), count = data.names.length
  const area = figure.querySelector('.area'), [row, column] = figure.querySelectorAll('.cross')
  const show = event => {
    const box = area.getBoundingClientRect()
    const x = Math.floor((event.clientX - box.left) / box.width * count)
    const y = Math.floor((event.clientY - box.top) / box.height * count)
    if (x < 0 || y < 0 || x >= count || y >= count) return
    const [answered, met] = data.cells[y * count + x] || [0, 0], rate = (100 * answered / met).toFixed(1)
    row.setAttribute('y', y * data.cell); column.setAttribute('x', x * data.cell)
    for (const line of [row, column]) line.removeAttribute('visibility')
    figure.querySelector('output').textContent = x == y
      ? `${data.names[y]}: ${rate} % right (${answered} of ${met} queries)`
      : met
      ? `${data.names[y]} taken for ${data.names[x]}: ${rate} % (${answered} of ${met} queries in tasks with both)`
      : `${data.names[y]} and ${data.names[x]}: never in one task`
  }
  for (const kind of ['pointermove', 'pointerdown']) figure.querySelector('svg').addEventListener(kind, show)
}
"""


def figure(answered: np.ndarray, met: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as HTML.

    Args:
      answered: int [C, C], queries of the row's class that were answered with the column's.
      met: int [C, C], queries of the row's class in tasks that had the column's.
      names: [C].
    """
    count = len(names)
    cell = int(np.clip(WANTED / count, SMALLEST_CELL, LARGEST_CELL))
    side, rates = count * cell, np.divide(answered, met, out=np.zeros((count, count)), where=met > 0)
    np.fill_diagonal(rates, 0)
    highest = rates.max(initial=0)
    shades = np.ceil(rates / (highest or 1) * LEVELS).astype(int)
    apart = ~np.eye(count, dtype=bool)
    parts = [f'<path class="zero" d="{_squares((met > 0) & apart & (shades == 0), cell)}"/>']
    for shade in range(1, LEVELS + 1):
        if path := _squares((shades == shade) & apart, cell):
            parts.append(f'<path fill-opacity="{shade / LEVELS:g}" d="{path}"/>')
    parts.append(f'<path class="diagonal" d="{_squares(~apart, cell)}"/>')
    margin = 30
    if cell >= SMALLEST_NAMED:
        size = min(13, cell)
        short = [shorten(name, LONGEST) for name in names]
        margin += round(0.64 * size * max(map(len, short)))
        parts += [_label(name, i * cell + cell / 2, size) for i, name in enumerate(short)]
    for shape in (f'width="{side}" height="{cell}"', f'width="{cell}" height="{side}"'):
        parts.append(f'<rect class="cross" {shape} visibility="hidden"/>')
    axes = (
        f'<text x="{side / 2}" y="{14 - margin}" text-anchor="middle" font-size="14">prediction</text>'
        f'<text transform="translate({14 - margin},{side / 2}) rotate(-90)" text-anchor="middle" font-size="14">'
        "true class</text>"
    )
    whole = margin + side + 2
    svg = (
        f'<svg width="{whole}" height="{whole}" viewBox="{-margin} {-margin} {whole} {whole}" role="img" '
        f'aria-label="confusion matrix of {count} classes">{_PATTERN}'
        f'<rect class="area" width="{side}" height="{side}"/>{axes}{"".join(parts)}</svg>'
    )
    return (
        f'<div class="confusion">{_legend(highest)}<output>Point at a cell, or tap it, to read its classes.</output>'
        f'<div class="scroll">{svg}</div>{_data(answered, met, names, cell)}</div>'
    )


_PATTERN = (
    '<defs><pattern id="never" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<path class="hatch" d="M0 5L5 0"/></pattern></defs>'
)


def _squares(where: np.ndarray, cell: int) -> str:
    """The path of the squares [C, C]; neighbours in a row are one rectangle."""
    edges = np.diff(np.pad(where.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    return "".join(
        f"M{start * cell} {row * cell}h{(end - start) * cell}v{cell}h{(start - end) * cell}z"
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
    )


def _label(name: str, place: float, size: int) -> str:
    style = f'font-size="{size}" dominant-baseline="central"'
    return (
        f'<text x="-5" y="{place:g}" text-anchor="end" {style}>{text(name)}</text>'
        f'<text transform="translate({place:g},-5) rotate(-90)" {style}>{text(name)}</text>'
    )


def _legend(highest: float) -> str:
    def swatch(shape: str) -> str:
        return f'<svg width="14" height="14">{shape}</svg>'

    square = '<rect width="14" height="14" '
    ramp = "".join(
        f'<rect class="swatch" x="{7 * i}" width="7" height="14" fill-opacity="{(i + 1) / LEVELS:g}"/>'
        for i in range(LEVELS)
    )
    return (
        '<p class="legend">'
        f'<span><svg width="{7 * LEVELS}" height="14">{ramp}</svg>up to {100 * highest:.0f} % of queries</span>'
        f"<span>{swatch(square + 'class=zero style=stroke:var(--line) />')}never mistaken</span>"
        f"<span>{swatch(square + 'class=diagonal />')}right answers</span>"
        f"<span>{swatch(square + 'style=fill:url(#never);stroke:var(--line) />')}never in one task</span></p>"
    )


def _data(answered: np.ndarray, met: np.ndarray, names: Sequence[str], cell: int) -> str:
    cells: Mapping[int, Sequence[int]] = {
        int(i): (int(answered.flat[i]), int(met.flat[i])) for i in np.flatnonzero(met)
    }  # fmt: skip
    content = json.dumps({"names": list(names), "cell": cell, "cells": cells}, separators=(",", ":"))
    # "<" in a class's name must not end the element.
    return f'<script type="application/json">{content.replace("<", chr(92) + "u003c")}</script>'
