"""``python -m captum_cav`` is ``captum-cav``."""

import sys

from captum_cav.cli import main

if __name__ == "__main__":
    sys.exit(main())
