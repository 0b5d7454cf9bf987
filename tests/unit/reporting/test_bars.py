import cv2
import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting import LayerBar, draw_sensitivity


def bars(count, mad=1.0):
    errors = {"W4A4": mad, "W8A8": mad / 10}
    return [
        LayerBar(f"{'encoder' if i % 2 else 'decoder'}.layer{i}", errors, errors)
        for i in range(count)
    ]


def test_the_picture_grows_with_the_layers(tmp_path):
    widths = []
    for count in (1, 50, 100):
        draw_sensitivity(bars(count), tmp_path / "bars.png")
        widths.append(cv2.imread(str(tmp_path / "bars.png")).shape[1])
    assert widths[0] < widths[1] < widths[2]
    assert [path.name for path in tmp_path.iterdir()] == ["bars.png"]


def test_layers_that_move_nothing_can_be_drawn(tmp_path):
    draw_sensitivity(bars(3, mad=0.0), tmp_path / "bars.png")
    assert (tmp_path / "bars.png").is_file()


@pytest.mark.parametrize("layers", [[], [LayerBar("a", {}, {})]])
def test_nothing_to_draw_is_refused(tmp_path, layers):
    with pytest.raises(PTQ4VMError, match="at least one measured layer"):
        draw_sensitivity(layers, tmp_path / "bars.png")
