"""A matrix as coloured cells: who against whom, or who has what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures.measure import fitted, measured
from fedsdr.report.figures.svg import (
    BINS,
    WIDTH,
    Figure,
    Table,
    diverging,
    element,
    frame,
    group,
    sequential,
    text,
)
from fedsdr.text.numbers import fixed, plain

Matrix = Sequence[Sequence[float | None]]
LABELLED = 40  # rows; of more only every n-th is named
LARGEST = 38.0
ROW_NAME, COLUMN_NAME = 106.0, 87.0  # units of a name
NUMBER, SMALLEST = 10.0, 8.5  # type of the numbers in cells
TABLE_SIZE = 32  # a larger matrix's table is cut


@dataclass(frozen=True, slots=True)
class Colours:
    """From low (neutral) to high (blue), or around a neutral 0: what is below it is vermilion,
    unless less is better."""

    low: float
    high: float
    around_zero: bool = False
    less_is_better: bool = False

    def of(self, value: float | None) -> tuple[str, str, bool]:
        if self.around_zero:
            turned = -value if value is not None and self.less_is_better else value
            return diverging(turned, max(abs(self.low), abs(self.high)))
        return sequential(value, self.low, self.high)


def heatmap(
    name: str,
    title: str,
    reading: str,
    rows: Sequence[str],
    columns: Sequence[str],
    matrix: Matrix,
    colours: Colours,
    scale_label: str,
    row_label: str = "",
    column_label: str = "",
    shown: Callable[[float | None], str] = plain,
    tip: Callable[[float | None], str] | None = None,
) -> Figure:
    """`shown` writes a value in its cell where there is room, `tip` in the tooltip."""
    to_text = tip or shown
    names_wide = 14 + max((measured(fitted(r, ROW_NAME)) for r in rows), default=0.0)
    left = names_wide + 16 * bool(row_label)
    cell = min(LARGEST, (WIDTH - left - 8) / max(1, len(columns)))
    left += (WIDTH - 8 - left - cell * len(columns)) / 2
    height = min(cell, 26.0) if len(rows) != len(columns) else cell
    widest = max((measured(fitted(c, COLUMN_NAME)) for c in columns), default=0.0)
    turned = widest > cell - 2
    names = 8 + (widest if turned else 12)
    top = 16 * bool(column_label) + names + 4
    bottom = top + height * len(rows)
    number = _type_of_numbers(matrix, colours, shown, cell - 3)
    roomy = cell >= 27 and height >= 17 and number >= SMALLEST
    parts = list[Markup]()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = matrix[i][j]
            class_, colour, strong = colours.of(value)
            x, y = left + j * cell, top + i * height
            parts.append(
                element(
                    "rect", x=x, y=y, width=cell - 1, height=height - 1, fill=colour,
                    class_=f"cell {class_}", data_tip=f"{row} × {column}: {to_text(value)}",
                )
            )  # fmt: skip
            if roomy:
                parts.append(
                    element(
                        "text", shown(value), x=x + cell / 2 - 0.5, y=y + height / 2 + 3.5,
                        text_anchor="middle", font_size=number,
                        fill="#ffffff" if strong else "#000000",
                        class_="number strong" if strong else "number",
                    )
                )  # fmt: skip
    content = [
        *_titles(row_label, column_label, left, left - names_wide, (top + bottom) / 2),
        *_row_names(rows, left, top, height),
        *_column_names(columns, left, top, cell, turned),
        group(parts, class_="cells"),
        *_bar(colours, scale_label, left, bottom + 14),
    ]
    svg = frame(name, title, reading, bottom + 48, *content)
    return Figure(name, title, reading, svg, _table(rows, columns, matrix, to_text, row_label))


def in_cells(value: float | None) -> str:
    """Cosines and divergences in a cell: '.38', '−.07'."""
    return fixed(value, 2).replace("0.", ".") if value is not None else ""


def _type_of_numbers(
    matrix: Matrix, colours: Colours, shown: Callable[[float | None], str], room: float
) -> float:
    """The largest in which all of them fit, those of other rounds too."""
    ends = (colours.low, colours.high)
    written = {shown(value) for row in (*matrix, ends) for value in row}
    widest = max(measured(number, 1.0) for number in written)
    return min(NUMBER, room / widest) if widest else NUMBER  # some write nothing into cells


def _titles(
    row_label: str, column_label: str, left: float, turned: float, middle: float
) -> list[Markup]:
    parts = list[Markup]()
    if column_label:
        parts.append(text(left, 12, f"{column_label} →", muted=True, size=11))
    if row_label:
        parts.append(
            text(turned, middle, row_label, anchor="middle", muted=True, size=11, turned=True)
        )
    return parts


def _row_names(rows: Sequence[str], left: float, top: float, height: float) -> list[Markup]:
    every = -(-len(rows) // LABELLED)
    size = 11 if height >= 12 or every > 1 else max(6.0, height)
    return [
        text(
            left - 6, top + (i + 0.5) * height + 3.5, fitted(row, ROW_NAME), anchor="end", size=size
        )
        for i, row in enumerate(rows)
        if i % every == 0
    ]


def _column_names(
    columns: Sequence[str], left: float, top: float, cell: float, turned: bool
) -> list[Markup]:
    every = max(1, -(-len(columns) // LABELLED))
    size = 11 if cell >= 12 or every > 1 or not turned else max(6.0, cell)
    parts = list[Markup]()
    for j, column in enumerate(columns):
        if j % every:
            continue
        x, label = left + (j + 0.5) * cell, fitted(column, COLUMN_NAME)
        if turned:
            parts.append(text(x + 4, top - 5, label, size=size, turned=True))
        else:
            parts.append(text(x, top - 6, label, anchor="middle", size=size))
    return parts


def _bar(colours: Colours, label: str, left: float, top: float) -> list[Markup]:
    """What the colours mean: further to the left where the words need the room."""
    left = max(4.0, min(left, WIDTH - 4 - 140 - measured(label)))
    steps = BINS if colours.around_zero else BINS // 2
    wide = 130 / (steps + 1)
    low, high = colours.low, colours.high
    if colours.around_zero:
        high = max(abs(low), abs(high))
        low = -high
    cells = [
        element(
            "rect", x=left + n * wide, y=top, width=wide + 0.3, height=9,
            fill=colours.of(low + (high - low) * n / steps)[1],
            class_="cell " + colours.of(low + (high - low) * n / steps)[0],
        )
        for n in range(steps + 1)
    ]  # fmt: skip
    return [
        group(cells, class_="scale"),
        text(left, top + 22, plain(low), muted=True, size=10),
        text(left + 130, top + 22, plain(high), anchor="end", muted=True, size=10),
        text(left + 140, top + 9, label, muted=True, size=11),
    ]


def _table(
    rows: Sequence[str],
    columns: Sequence[str],
    matrix: Matrix,
    to_text: Callable[[float | None], str],
    row_label: str,
) -> Table:
    cut = max(len(rows), len(columns)) > TABLE_SIZE
    note = f"The first {TABLE_SIZE} rows and columns." if cut else ""
    return Table(
        (row_label, *columns[:TABLE_SIZE]),
        tuple(
            (row, *(to_text(v) for v in matrix[i][:TABLE_SIZE]))
            for i, row in enumerate(rows[:TABLE_SIZE])
        ),
        note,
    )
