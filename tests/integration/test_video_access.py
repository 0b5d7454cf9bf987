"""Test of benchmarks/video_access.py on a small video."""

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "video_access.py"


def test_ways_to_read_are_timed_and_give_the_same_frames(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("video_access", SCRIPT)
    video_access = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(video_access)
    for name, value in {"HEIGHT": 120, "WIDTH": 160, "SEQUENCES": 4}.items():
        monkeypatch.setattr(video_access, name, value)
    arguments = ["video_access.py", "--minutes", "0.2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    video_access.main()
    table = capsys.readouterr().out.splitlines()[-4:]
    names = [
        "one decode of 300 frames",
        "first read: index of the packets and one sequence",
        "4 sequences of 6 frames",
        "the same from frame 0, extrapolated from 2",
    ]
    assert [line.split("|")[1].strip() for line in table] == names
    assert table[0].endswith("| 1.00 |")
