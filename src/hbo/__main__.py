"""``python -m hbo`` is the program ``hbo``."""

import sys

from hbo.cli import main

if __name__ == "__main__":
    sys.exit(main())
