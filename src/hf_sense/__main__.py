"""``python -m hf_sense`` and the ``hf-sense`` command."""

import sys

from hf_sense.cli import main

if __name__ == "__main__":
    sys.exit(main())
