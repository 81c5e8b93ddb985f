"""python -m ldm_lite is the command ldm-lite: what torchrun starts."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
