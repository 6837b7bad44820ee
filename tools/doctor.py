"""`lrqat doctor` from a checkout."""

import os
import sys

# This checkout in the place of tools/, whose inspect.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from lrqat.cli import command, doctor

if __name__ == "__main__":
    command.run(doctor.main)
