"""``python -m diffprobe`` is ``diffprobe``."""

import sys

from diffprobe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
