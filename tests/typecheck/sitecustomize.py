"""Python imports this file at start when its folder is on PYTHONPATH: see shape_checks.py."""

import shape_checks

shape_checks.install()
