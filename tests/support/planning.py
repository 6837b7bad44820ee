"""What runs plan from shapes and settings alone, made once a session for the same ones.

A run in the tests is short, and half of it would be this: a step on the meta device, and the pace
of the machine. `tests/lrqat/training/test_phases.py` and `test_duration.py` call what plans itself.
"""

import pytest

# Settings that neither depends on.
_WITHOUT = {"output", "data", "eval_data", "seed", "steps", "save_every", "report_to"}


@pytest.fixture(autouse=True, scope="session")
def _plans_are_made_once():
    from lrqat.training import plan as planning

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(planning, "estimate_run", _once(planning.estimate_run))
        patches.setattr(planning, "measure_pace", _once(planning.measure_pace))
        yield


def _once(make):
    """`make`, which is not called again with what it was given before."""
    made = {}

    def remember(*given, libraries=None, **named):
        key = repr([_shapes(value) for value in (*given, *named.items())])
        if key not in made:
            made[key] = make(
                *given, **named, **({} if libraries is None else {"libraries": libraries})
            )
        return made[key]

    return remember


def _shapes(value):
    """What of an argument tells it from others."""
    if hasattr(value, "skeleton"):
        return value.skeleton.config.to_json_string(), value.weights and value.weights.folder
    if hasattr(value, "to_json"):
        return {name: each for name, each in value.to_json().items() if name not in _WITHOUT}
    return value
