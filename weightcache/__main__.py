"""``python -m weightcache`` is the command ``weightcache``."""

import sys

from weightcache._tool.cli import main

sys.exit(main())
