"""Where the repository is, and the models and texts that lie beside it on some machines."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared_model(name):
    """Mark and path for a test on one of the shared models; skipped where they are absent."""
    path = SHARED / "models" / name
    return pytest.param(
        path, id=name, marks=pytest.mark.skipif(not path.is_dir(), reason=f"no shared {name}")
    )
