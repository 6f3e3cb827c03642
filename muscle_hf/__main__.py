"""``python -m muscle_hf``: the same as the command ``muscle-hf``."""

import sys

from muscle_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
