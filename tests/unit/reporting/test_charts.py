import pytest

from ptq4vm.reporting.charts import bar_chart, line_chart, round_up


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.01, 1.2), (5, 6), (9.9, 10), (0.031, 0.04), (101, 120)]
)
def test_the_top_of_a_scale_is_the_next_round_number(value, top):
    assert round_up(value) == pytest.approx(top)


def test_lines_go_from_edge_to_edge_and_keep_their_proportions():
    chart = line_chart("MAD", {2: ("a", [0.0, 10.0, 5.0]), 7: ("b", [10.0])})
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert [line.number for line in chart.lines] == [2, 7]
    assert points[0] == (chart.left, chart.bottom)
    assert points[2][0] == pytest.approx(chart.width - 8)
    assert points[1][1] == pytest.approx(chart.y_ticks[-1].place)
    assert points[2][1] == pytest.approx((points[0][1] + points[1][1]) / 2)
    assert [tick.label for tick in chart.y_ticks] == ["0", "2.5", "5", "7.5", "10"]


def test_long_clips_are_drawn_by_means():
    chart = line_chart("MAD", {0: ("a", [1.0, 3.0] * 480)})
    assert chart.merged == 4
    assert len(chart.lines[0].points.split()) == 240
    assert chart.lines[0].highest == 2.0


def test_bars_by_decades_leave_out_what_has_no_logarithm():
    chart = bar_chart(
        "loss", ["a", "b", "c"], {"x": [0.1, 10.0, 0.0], "y": [1.0, None, 100.0]}, logarithmic=True
    )
    assert [(bar.number, bar.text) for bar in chart.bars] == [
        (0, "a: x 0.1"), (0, "b: x 10"), (1, "a: y 1"), (1, "c: y 100")
    ]  # fmt: skip
    heights = [bar.height for bar in chart.bars]
    assert heights[1] - heights[2] == pytest.approx(heights[3] - heights[1])
    assert all(bar.y + bar.height == pytest.approx(chart.bottom) for bar in chart.bars)


def test_negative_bars_hang_below_zero():
    chart = bar_chart("dB", ["a", "b"], {"x": [10.0, -5.0]})
    up, down = chart.bars
    assert up.y + up.height == pytest.approx(down.y)
    assert up.height == pytest.approx(2 * down.height)
