"""What the tests share: tiny models, fixtures, decoders that are not ours."""

import pkgutil

import pytest

# Comparisons that fail in these modules are shown as in a test.
MODULES = [f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)]
pytest.register_assert_rewrite(*MODULES)
