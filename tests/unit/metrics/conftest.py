"""Import path of tests/reference, also for processes spawned by a test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
