# SPDX-License-Identifier: Apache-2.0
"""`python -m sparserefine_ros.cli`."""

import sys

from sparserefine_ros.cli import main

if __name__ == "__main__":
    sys.exit(main())
