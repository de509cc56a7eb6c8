"""``python -m captum_cav`` runs the command ``captum-cav``."""

import sys

from captum_cav.cli import main

if __name__ == "__main__":
    sys.exit(main())
