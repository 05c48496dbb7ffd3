"""``python -m weightcache`` is the command ``weightcache``."""

import sys

from weightcache.cli.main import main

sys.exit(main())
