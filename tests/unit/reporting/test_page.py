import json
import re

import pytest
from folders import CLIPS, make_inside, make_shots, write, write_run

from ptq4vm.deploy import Speed
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting import write_speeds
from ptq4vm.reporting.page import write_page
from ptq4vm.reporting.runs import read_run


def page(run, shots=None, **options):
    shots = make_shots() if shots is None else shots
    write_page(read_run(run), shots, make_inside(), run / "report.html", **options)
    return (run / "report.html").read_text()


def pictures(html):
    return json.loads(re.search(r'id="pictures">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_holds_all_it_shows_and_asks_the_network_for_nothing(tmp_path):
    html = page(write_run(tmp_path / "run"))
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", html)
    assert "http" not in html
    assert "@import" not in html
    clips = pictures(html)
    assert [clip["name"] for clip in clips] == list(CLIPS)
    assert all(
        shot["error"]["W4A8"].startswith("data:image/webp;base64,") for shot in clips[0]["frames"]
    )
    assert clips[0]["frames"][0]["truth"]
    assert not clips[1]["frames"][0]["truth"]
    for text in (
        "9.00 (×1.80)",
        "BIQ + &lt;GAC&gt;",
        "0123456789abcdef",
        "not as it is: an affine grid.",
    ):
        assert text in html
    assert html.count("<polyline") == 2 * len(CLIPS) * 5 + 2
    assert "encoder: rounded to nearest 0.4" in html


def test_what_was_measured_besides_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    assert "Latency was not measured" in page(run)
    assert "quantized alone" not in page(run)
    speed = Speed("w8a8.onnx", "W8A8", "openvino", "78 int8", 3.8, 12.5, 13.0, 80.0, 99.0)
    write_speeds(run / "speed.json", [speed], {"size": "288x512"})
    errors = {"W4A4": {"mad": 3.5, "dtssd": 1.0}}
    write(
        run / "sensitivity.json",
        {"settings": {}, "layers": [{"name": "decoder.last", "errors": errors}]},
    )
    html = page(run)
    assert "12.50" in html
    assert "openvino (78 int8)" in html
    assert "decoder.last: W4A4 3.5" in html


def test_an_old_run_without_frames_is_said_so(tmp_path):
    run = write_run(tmp_path / "run")
    for path in run.rglob("*.frames.json"):
        path.unlink()
    for path in run.rglob("metrics.csv"):
        path.unlink()
    (run / "run.json").unlink()
    html = page(run, shots=[], problem="the <evaluation> was moved")
    for text in (
        "before values of single frames",
        "no CSV logs",
        "before versions",
        "the &lt;evaluation&gt; was moved",
    ):
        assert text in html


@pytest.mark.parametrize(("path", "message"), [
    ("w8a8/biq/version_0/metrics.csv", "Expected the log of a fit"),
    ("w4a8/ofa.frames.json", "Expected JSON"),
    ("float.frames.json", "Expected numbers by clip"),
    ("sensitivity.json", "Expected JSON"),
])  # fmt: skip
def test_a_damaged_file_is_told(tmp_path, path, message):
    run = write_run(tmp_path / "run")
    damaged = (
        '{"clip": {"mad": "many"}}'
        if path == "float.frames.json"
        else "biq/block,biq/hard\nnonsense,1\n"
    )
    (run / path).write_text(damaged)
    with pytest.raises(PTQ4VMError, match=message):
        page(run)
    assert not (run / "report.html").exists()


def test_a_run_that_diverged_is_shown_as_far_as_it_goes(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "w8a8" / "ofa.frames.json").write_text(
        '{"set/clip one": {"mad": [NaN, 1.0], "dtssd": [0.0, Infinity]}}'
    )
    (run / "w8a8" / "ofa" / "version_3" / "metrics.csv").write_text(
        "gac/loss,step\n0.5,9\nnan,19\n"
    )
    (run / "w8a8" / "biq" / "version_0" / "metrics.csv").write_text(
        "biq/block,biq/hard,biq/nearest\n0.0,nan,0.4\n1.0,inf,1.0\n"
    )
    html = page(run)
    assert "nan" not in html.partition('id="pictures"')[0].lower()
    assert html.count("<polyline") == 2 * len(CLIPS) * 5 + 2 - 4


def test_a_row_of_another_run_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    table = json.loads((run / "metrics.json").read_text())
    table["rows"][1]["method"] = "../biq"
    (run / "metrics.json").write_text(json.dumps(table))
    with pytest.raises(PTQ4VMError, match="Expected the rows of"):
        page(run)


def test_without_true_alpha_the_headline_is_the_distance_to_float(tmp_path):
    run = write_run(tmp_path / "run", bits=("W8A8",))
    table = json.loads((run / "metrics.json").read_text())
    for row in table["rows"]:
        row["metrics"] = {}
    (run / "metrics.json").write_text(json.dumps(table))
    html = page(run)
    assert "<dt>MAD ×10³ to float</dt><dd>0.00 → 2.00 <small></small></dd>" in html
