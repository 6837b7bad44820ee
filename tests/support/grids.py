"""Which grids a test runs on that is too slow to run on the whole table."""

SYMMETRIC_GRIDS = ("q4_0", "q8_0", "int4-g128", "int4-channel")
# One of every kind: symmetric, with a minimum or zero-points, with two levels, of no even steps.
KINDS_OF_GRIDS = (
    *SYMMETRIC_GRIDS, "q2_0", "q4_1", "q2_k", "q2_k-sym", "q3_k", "q6_k", "tq2_0", "iq4_nl",
    "iq4_xs", "mxfp4", "nvfp4", "int3-asym-g64", "int8-asym-channel",
)  # fmt: skip
