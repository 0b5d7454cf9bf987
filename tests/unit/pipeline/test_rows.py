import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.pipeline import DEFAULT_ROWS, Row
from ptq4vm.pipeline.rows import check_rows


def test_the_papers_steps_follow_from_each_other():
    assert list(check_rows(DEFAULT_ROWS)) == ["rtn", "biq", "gac", "ofa"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "Expected at least one row"),
        ({"gac": Row("GAC", start="biq")}, r"a row before it \(none\), got 'biq'"),
        ({"gac": Row("GAC", start="biq"), "biq": Row("BIQ")}, "a row before it"),
        ({"a": Row("A"), "b": Row("B", start="a", qconfig={"bits": "W4A4"})}, "keep the qconfig of a"),
        ({"../a": Row("A")}, "letters, digits"),
    ],
)
def test_rows_that_do_not_follow_are_refused(rows, message):
    with pytest.raises(PTQ4VMError, match=message):
        check_rows(rows)
