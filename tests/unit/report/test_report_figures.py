"""Figures: numbers land where they should, and nothing but text comes of text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fedsdr.report.figures import axis, bars, curves, heatmap, intervals, scatter
from fedsdr.report.figures import svg as palette
from fedsdr.report.figures.measure import fitted, measured
from fedsdr.report.figures.svg import Figure, Table, anchor, element

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"><script>alert(1)</script>\u202e\x00'


def parsed(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(str(figure.svg))


def texts(figure: Figure) -> list[str]:
    return ["".join(node.itertext()) for node in parsed(figure).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 0.48, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
    ],
)
def test_ticks_are_round_and_cover_the_data(low: float, high: float, expected: list[float]) -> None:
    assert axis.ticks(low, high) == pytest.approx(expected)


def test_ticks_are_written_alike() -> None:
    assert axis.labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert axis.labels([-1.0, 0.0, 1.0]) == ["−1", "0", "1"]
    assert axis.labels([0.0, 20_000.0]) == ["0", "20k"]
    assert axis.labels([0.0, 2_000_000.0]) == ["0", "2M"]


def test_rounds_come_whole() -> None:
    assert axis.whole_ticks(1, 8) == [2, 4, 6, 8]
    assert axis.whole_ticks(3, 3) == [3]
    assert len(axis.whole_ticks(1, 1000)) <= 11


def test_a_curve_goes_where_the_numbers_are_and_has_a_gap_where_one_is_missing() -> None:
    line = curves.Line("m", [(1, 0.0), (2, 1.0), (3, None), (4, 0.5)], 0)
    figure = curves.curves("a", "Title", "How.", [line], "y")
    (path,) = [p for p in parsed(figure).iter(f"{SVG}path") if p.get("fill") == "none"]
    steps = re.findall(r"([ML])([\d.]+) ([\d.]+)", path.get("d") or "")
    assert [step[0] for step in steps] == ["M", "L", "M"]  # a gap, not a line through it
    (x1, y1), (x2, y2), (x4, y4) = [(float(x), float(y)) for _, x, y in steps]
    assert x2 - x1 == pytest.approx((x4 - x1) / 3, abs=0.2)
    assert y1 - y2 == pytest.approx(curves.PLOT, abs=0.1)  # 0 at the bottom, 1 at the top
    assert y4 == pytest.approx((y1 + y2) / 2, abs=0.1)


def test_the_table_of_a_figure_holds_its_numbers() -> None:
    lines = [curves.Line("a", [(1, 0.1), (2, 0.2)], 0), curves.Line("b", [(2, 0.3)], 1)]
    figure = curves.curves("a", "Title", "How.", lines, "y")
    assert figure.table.header == ("round", "a", "b")
    assert figure.table.rows == (("1", "0.100", "–"), ("2", "0.200", "0.300"))
    assert Table(("", "n", "what"), (("a", "−0.1", "x"), ("b", "–", "2"))).wordy == [
        True,
        False,
        True,
    ]


def test_the_ends_of_a_map_and_its_middle() -> None:
    assert palette.diverging(-1, 1)[:2] == ("d0", "#b24800")
    assert palette.diverging(0, 1)[:2] == ("d10", "#f3f4f6")
    assert palette.diverging(7, 1)[:2] == ("d20", "#005493")
    assert palette.diverging(None, 1)[0] == palette.sequential(float("nan"), 0, 1)[0] == "none"
    assert palette.sequential(0.5, 0, 1)[0] == "q5"
    assert heatmap.Colours(-1, 1, True, less_is_better=True).of(1.0)[0] == "d0"
    assert heatmap.in_cells(-0.384) == "−.38"


def test_a_heat_map_has_a_cell_for_each_pair_and_a_scale() -> None:
    figure = heatmap.heatmap(
        "a", "T", "How.", ["x", "y"], ["x", "y"], [[1, -0.5], [None, 1]],
        heatmap.Colours(-1, 1, True), "cosine", shown=heatmap.in_cells,
    )  # fmt: skip
    cells = [r for r in parsed(figure).iter(f"{SVG}rect") if r.get("data-tip")]
    assert [c.get("class") for c in cells] == ["cell d20", "cell d5", "cell none", "cell d20"]
    assert cells[1].get("data-tip") == "x × y: −.50"
    assert "cosine" in texts(figure)


def test_bars_stack_and_stand_on_zero() -> None:
    kinds = [bars.Series("up", [1.0, 2.0]), bars.Series("down", [3.0, None])]
    figure = bars.columns("a", "T", "How.", ["1", "2"], kinds, "MB", "round", stacked=True)
    drawn = [r for r in parsed(figure).iter(f"{SVG}rect") if r.get("data-tip")]
    heights = [float(r.get("height") or 0) for r in drawn]
    assert heights[1] == pytest.approx(3 * heights[0], rel=1e-2)
    assert heights[3] == 0
    tops = [float(r.get("y") or 0) for r in drawn]
    assert tops[1] + heights[1] == pytest.approx(tops[0], abs=0.02)


@pytest.mark.parametrize("kind", ["curves", "heatmap", "intervals", "columns", "lying", "scatter"])
def test_a_figure_is_xml_that_names_itself_whatever_its_words(kind: str) -> None:
    name = HOSTILE
    figure = {
        "curves": lambda: curves.curves(name, name, name, [curves.Line(name, [(1, 1.0)], 0)], name),
        "heatmap": lambda: heatmap.heatmap(
            name, name, name, [name], [name], [[1]], heatmap.Colours(0, 1), name, name, name
        ),
        "intervals": lambda: intervals.intervals(
            name, name, name, [name], [intervals.Entry(name, (intervals.Dot(1, 0, 2),))], name
        ),
        "columns": lambda: bars.columns(
            name, name, name, [name], [bars.Series(name, [1.0])], name, name
        ),
        "lying": lambda: bars.lying(name, name, name, [(name, 1.0)], name),
        "scatter": lambda: scatter.scatter(
            name, name, name, [scatter.Point(name, 1.0, 2.0)], name, name
        ),
    }[kind]()
    drawn = parsed(figure)
    assert drawn.find(f"{SVG}title") is not None
    assert drawn.find(f"{SVG}desc") is not None
    assert drawn.get("aria-labelledby")
    assert not list(drawn.iter(f"{SVG}script"))
    assert "\u202e" not in str(figure.svg)
    assert "⟨U+202E⟩" in str(figure.svg)
    assert "style=" not in str(figure.svg)


@pytest.mark.parametrize("count", [0, 1, 200])
def test_few_and_many(count: int) -> None:
    """No figure falls over an empty list, and none grows without bound."""
    lines = [curves.Line(f"c{n}", [(r, n / 10) for r in range(50)]) for n in range(count)]
    entries = [intervals.Entry(f"c{n}", (intervals.Dot(n),)) for n in range(count)]
    names = [f"c{n}" for n in range(count)]
    for figure in (
        curves.curves("a", "T", "How.", lines, "y"),
        intervals.intervals("a", "T", "How.", ["x"], entries, "x"),
        heatmap.heatmap(
            "a", "T", "How.", names, names, [[0.0] * count] * count, heatmap.Colours(0, 1), "x"
        ),
        bars.columns("a", "T", "How.", names, [bars.Series("s", [1.0] * count)], "y", "x"),
        bars.lying("a", "T", "How.", [(name, 1.0) for name in names], "x"),
    ):
        parsed(figure)
        assert len(figure.table.rows) <= 400
        assert len(str(figure.svg)) < 8_000_000


def test_attributes_are_escaped_and_ids_are_ids() -> None:
    assert str(element("a", "<b>", title='"x" & <y>')) == (
        '<a title="&#34;x&#34; &amp; &lt;y&gt;">&lt;b&gt;</a>'
    )
    assert anchor("scores-Ünï <x>/1") == "scores-n-x-1"
    assert anchor("⟨⟩") == "x"


def test_a_label_is_cut_to_its_room() -> None:
    assert fitted("abcdef", measured("abcdef")) == "abcdef"
    assert fitted("abcdef", measured("abc…")) == "abc…"
    assert fitted("iiiiiiiiii", measured("WWW")) == "iiiiiiiiii"
    assert fitted("x" * 200, 0) == "…"
