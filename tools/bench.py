"""What `benchmarks/bench.py` does, as a command."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import bench
from lrqat.cli import command

if __name__ == "__main__":
    command.run(bench.main)
