import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.pipeline import DEFAULT_ROWS, Method
from ptq4vm.pipeline.rows import check_rows


def test_the_papers_steps_follow_from_each_other():
    assert list(check_rows(DEFAULT_ROWS)) == ["rtn", "biq", "gac", "ofa"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "Expected at least one row"),
        ({"gac": Method("GAC", start="biq")}, r"a row before it \(none\), got 'biq'"),
        ({"gac": Method("GAC", start="biq"), "biq": Method("BIQ")}, "a row before it"),
        (
            {"a": Method("A"), "b": Method("B", start="a", qconfig={"bits": "W4A4"})},
            "keep the qconfig of a",
        ),
        ({"../a": Method("A")}, "letters, digits"),
    ],
)
def test_rows_that_do_not_follow_are_refused(rows, message):
    with pytest.raises(PTQ4VMError, match=message):
        check_rows(rows)
