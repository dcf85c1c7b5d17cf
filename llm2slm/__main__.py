"""`python -m llm2slm VERB ...`: the same as the console script."""

import sys

from llm2slm.cli import main

if __name__ == "__main__":
    sys.exit(main())
