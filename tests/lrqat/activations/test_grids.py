"""Rounding of activations: properties, gradients against plain autograd, hooks on real models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrqat.activations.grids import ActivationRange, quantize, range_of
from lrqat.activations.table import ACTIVATION_GRIDS, find_activation_grid, parse_setting
from lrqat.errors import GridError, UserError

INTEGER = [name for name in ACTIVATION_GRIDS if name.startswith("int")]
TOKEN = [name for name in INTEGER if name.endswith("token")]
STATIC = [name for name in INTEGER if name.endswith("tensor")]
BLOCKED = [name for name in ACTIVATION_GRIDS if name not in INTEGER]


@st.composite
def rows(draw, columns=256):
    """A few rows of very different sizes, none subnormal or beyond a float16 scale."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x = torch.randn(3, columns, generator=generator)
    size = torch.tensor([10.0 ** draw(st.integers(-20, 5)) for _ in range(3)])
    return (x + draw(st.floats(-4, 4))) * size[:, None]


def ranges_of(x, grid):
    """The range of every row, or the one range of all of it."""
    if grid.static:
        return range_of(x.min(), x.max(), grid)
    return range_of(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), grid)


def rounded(x, grid, ranges):
    return quantize(x, grid, ranges if grid.static else None)


@pytest.mark.parametrize("name", INTEGER)
@settings(max_examples=40, deadline=None)
@given(x=rows())
def test_at_most_half_a_step_and_never_more_than_the_levels(name, x):
    grid = ACTIVATION_GRIDS[name]
    ranges = ranges_of(x, grid)
    x_hat = rounded(x, grid, ranges)
    # The quotient x / s is itself rounded, which moves a boundary by 2^-24 of it.
    slack = 0.5 + 2.0**-23 * 2**grid.bits
    assert ((x_hat - x).abs() <= ranges.scale * slack).all()
    q = x_hat.double() / ranges.scale.double() + ranges.zero_point
    assert (q - q.round()).abs().max() < 2.0**-6
    assert q.round().min() >= 0
    assert q.round().max() <= 2**grid.bits - 1
    assert torch.equal(ranges.zero_point, ranges.zero_point.round())


@pytest.mark.parametrize("name", ACTIVATION_GRIDS)
@settings(max_examples=25, deadline=None)
@given(x=rows(), where=st.integers(0, 255))
def test_zero_stays_zero_and_signs_stay(name, x, where):
    grid = ACTIVATION_GRIDS[name]
    x[:, where] = 0
    x_hat = rounded(x, grid, ranges_of(x, grid) if grid.static else None)
    assert (x_hat[:, where] == 0).all()
    assert (x_hat * x >= 0).all()


@pytest.mark.parametrize("name", [*STATIC, "q8_0"])
@settings(max_examples=25, deadline=None)
@given(x=rows())
def test_rounding_twice_is_rounding_once(name, x):
    grid = ACTIVATION_GRIDS[name]
    ranges = ranges_of(x, grid) if grid.static else None
    once = quantize(x, grid, ranges)
    assert torch.equal(quantize(once, grid, ranges), once)


@pytest.mark.parametrize("name", [n for n in BLOCKED if n != "q8_0"])
@settings(max_examples=25, deadline=None)
@given(x=rows())
def test_rounding_twice_moves_only_last_bits(name, x):
    once = quantize(x, ACTIVATION_GRIDS[name])
    torch.testing.assert_close(quantize(once, ACTIVATION_GRIDS[name]), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BLOCKED)
@settings(max_examples=25, deadline=None)
@given(x=rows())
def test_blocks_are_symmetric_independent_and_within_half_a_step(name, x):
    grid = ACTIVATION_GRIDS[name]
    x_hat = quantize(x, grid)
    assert torch.equal(quantize(-x, grid), -x_hat)
    assert torch.equal(quantize(x[:, : grid.block], grid), x_hat[:, : grid.block])
    amax = x.unflatten(-1, (-1, grid.block)).abs().amax(-1).repeat_interleave(grid.block, -1)
    # d of q8_0 is rounded to float16, at worst to nothing: 127 steps are 2^-11 of amax off.
    slack = 1 + 127 * 2.0**-10 if name == "q8_0" else 1 + 1e-4
    assert ((x_hat - x).abs() <= amax / 254 * slack + 127 * 2.0**-25).all()


@pytest.mark.parametrize("name", TOKEN)
def test_every_token_has_its_own_range_however_the_batch_is_shaped(name):
    x = torch.randn(2, 5, 48) * torch.logspace(-3, 3, 5)[:, None]
    x_hat = quantize(x, ACTIVATION_GRIDS[name])
    for i, j in ((0, 0), (1, 4)):
        assert torch.equal(quantize(x[i, j], ACTIVATION_GRIDS[name]), x_hat[i, j])


def test_numbers_worked_by_hand():
    grid = find_activation_grid("int4-token")
    # Range -1..2 and 15 steps of 0.2, zero at 5; 0.1 / 0.2 = 0.5 rounds to the even 0.
    x = torch.tensor([-1.0, 2.0, 0.25, 0.1, 0.35])
    torch.testing.assert_close(quantize(x, grid), torch.tensor([-1.0, 2.0, 0.2, 0.0, 0.4]))
    # All positive: the range starts at zero, not at the smallest value.
    x = torch.tensor([3.0, 3.05])
    torch.testing.assert_close(quantize(x, grid), torch.tensor([3.05 * 15 / 15, 3.05]))
    ranges = range_of(torch.tensor(-1.0), torch.tensor(2.0), ACTIVATION_GRIDS["int8-tensor"])
    assert ranges == (torch.tensor(3 / 255), torch.tensor(85.0))


@pytest.mark.parametrize("name", ACTIVATION_GRIDS)
def test_rows_of_zeros_and_of_the_smallest_numbers(name):
    grid = ACTIVATION_GRIDS[name]
    for value in (0.0, 1e-45, -1e-45, 1e-38):
        x = torch.full((1, 256), value)
        x_hat = rounded(x, grid, ranges_of(x, grid) if grid.static else None)
        assert x_hat.isfinite().all()
        assert (x_hat - x).abs().max() <= abs(value)


def ste(exact, value):
    return exact + (value - exact).detach()


def plain(x, scale, zero_point, grid):
    """The same expression with ordinary autograd operations and straight-through rounding."""
    z = ste(zero_point, zero_point.round())
    q = (ste(x / scale, (x / scale).round()) + z).clamp(0, grid.q_max)
    return scale * (q - z)


@pytest.mark.parametrize("learned", [(), ("scale",), ("zero_point",), ("scale", "zero_point")])
@pytest.mark.parametrize("name", STATIC)
def test_static_gradients_equal_plain_autograd(name, learned):
    torch.manual_seed(0)
    grid = ACTIVATION_GRIDS[name]
    x = torch.randn(7, 40, dtype=torch.float64, requires_grad=True)
    values = {
        "scale": torch.tensor(2.0 / grid.q_max, dtype=torch.float64),  # clips about a third
        "zero_point": torch.tensor(grid.q_max * 0.4 + 0.3, dtype=torch.float64),
    }
    for key in learned:
        values[key].requires_grad_()
    upstream = torch.randn_like(x)
    inputs = [x, *(values[key] for key in learned)]
    results = []
    for forward in (
        lambda: quantize(x, grid, ActivationRange(**values)),
        lambda: plain(x, grid=grid, **values),
    ):
        y = forward()
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    share = (results[1][1] == 0).double().mean()
    assert 0.1 < share < 0.9, "the test must exercise clipping"
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*TOKEN, *BLOCKED])
def test_dynamic_gradient_is_the_identity_and_keeps_nothing(name):
    x = torch.randn(3, 256, requires_grad=True)
    upstream = torch.randn_like(x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = quantize(x, ACTIVATION_GRIDS[name])
    assert not kept
    assert not torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y, x, upstream)[0], upstream)
    assert torch.equal(y, quantize(x.detach(), ACTIVATION_GRIDS[name]))


def test_frozen_static_ranges_keep_one_byte_a_value():
    x = torch.randn(64, 256, requires_grad=True)
    grid = ACTIVATION_GRIDS["int8-tensor"]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantize(x, grid, ranges_of(x.detach(), grid))
    assert [(t.dtype, t.shape) for t in kept] == [(torch.bool, x.shape)]


def test_bfloat16_computes_in_float32_and_returns_bfloat16():
    x = torch.randn(4, 64).bfloat16().requires_grad_()
    y = quantize(x, ACTIVATION_GRIDS["int8-token"])
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, quantize(x.float(), ACTIVATION_GRIDS["int8-token"]).bfloat16())
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_refusals_say_what_and_why():
    with pytest.raises(GridError, match="40 values are not a multiple of the 32"):
        quantize(torch.zeros(2, 40), ACTIVATION_GRIDS["q8_0"])
    with pytest.raises(GridError, match="needs ranges"):
        quantize(torch.zeros(2, 40), ACTIVATION_GRIDS["int8-tensor"])
    ranges = ActivationRange(torch.tensor(1.0), torch.tensor(0.0))
    with pytest.raises(GridError, match="takes none"):
        quantize(torch.zeros(2, 40), ACTIVATION_GRIDS["int8-token"], ranges)
    with pytest.raises(GridError, match="did you mean int8-token"):
        find_activation_grid("int8-tokn")
    with pytest.raises(GridError, match="ort-level4-g48"):
        find_activation_grid("ort-level4", weight_group=48)
    assert find_activation_grid("ORT-level4", weight_group=128).block == 128


def test_settings_of_the_paper():
    assert parse_setting("4-8-8") == (4, "int8-token", 8)
    assert parse_setting("4-8-4") == (4, "int8-token", 4)
    assert parse_setting("4-4-4") == (4, "int4-token", 4)
    assert parse_setting("4-16-16") == (4, None, None)
    for bad in ("4-8", "4-8-8-8", "1-8-8", "4-5-8", "w4a8", "", "4-8-32"):
        with pytest.raises(UserError, match="4-8-8"):
            parse_setting(bad)
