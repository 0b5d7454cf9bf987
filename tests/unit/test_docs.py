"""The README and CONTRIBUTING: length, the set-up commands, and links to files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_readme_is_short_and_has_the_set_up_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert {line.split("#")[0].strip() for line in lines} >= {"make demo", "make test"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)", (ROOT / page).read_text())
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert not [link for link in local if not (ROOT / link).exists()]


def test_every_table_of_the_results_has_its_two_markers():
    text = (ROOT / "docs" / "results.md").read_text()
    names = re.findall(r"<!-- table (\S+) -->", text)
    assert names == re.findall(r"<!-- end (\S+) -->", text)
    assert {"w8a8-0", "w4a8-0", "w4a4-0", "speed-288x512", "speed-720x1280"} <= set(names)
