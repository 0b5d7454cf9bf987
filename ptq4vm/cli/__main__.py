"""``python -m ptq4vm.cli`` is ``ptq4vm``."""

import sys

from ptq4vm.cli import main

sys.exit(main())
