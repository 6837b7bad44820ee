"""What `benchmarks/random_model.py` does, as a command."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import random_model
from lrqat.cli import command

if __name__ == "__main__":
    command.run(random_model.main)
