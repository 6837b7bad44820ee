"""The command of tools/inspection.py.

A script has its own folder first on the path, so for all scripts of this folder the `import
inspect` of the standard library's modules finds this file. It then gives way to the module that was
meant.
"""

import os
import sys

if __name__ == "inspect":
    _here = os.path.dirname(__file__)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]
    del sys.modules[__name__]
    import inspect  # noqa: F401  # what is registered now is what the first import returns
else:
    from tools import command
    from tools.inspection import main

    if __name__ == "__main__":
        command.run(main)
