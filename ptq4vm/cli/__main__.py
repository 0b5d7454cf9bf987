"""Entry point of ``python -m ptq4vm.cli``, the same as ``ptq4vm``."""

import sys

from ptq4vm.cli import main

sys.exit(main())
