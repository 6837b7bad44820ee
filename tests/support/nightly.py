"""Which cases of the longest tests run at night alone (`make nightly`), so that CI takes minutes.

Of tests that take the same way many times, CI has the cases that are listed here, one of each kind;
the others are marked `nightly`. A test that CI has no case of watches what is not ours: a fault in
another library, the table of a benchmark.
"""

from fnmatch import fnmatchcase

import pytest

_ONNX = "runtime_tests/test_onnx_architectures.py::"
_OF_EVERY_ATTENTION = ("llama, llama3 rope*", "qwen3*", "gemma3*", "phi3, long rope*", "gpt2*")
# Test -> the cases that CI has too, as patterns.
OFTEN = {
    f"{_ONNX}test_logits_are_pytorchs_all_at_once_and_step_by_step_in_a_padded_batch": (
        _OF_EVERY_ATTENTION
    ),
    f"{_ONNX}test_every_layers_hidden_state_is_found_in_the_graph": _OF_EVERY_ATTENTION,
    f"{_ONNX}test_genai_continues_as_transformers_does": _OF_EVERY_ATTENTION,
    f"{_ONNX}test_attention_as_products_and_unsigned_integers_give_the_same": ("gemma3",),
    f"{_ONNX}test_a_report_says_when_attention_was_not_fused": ("llama, llama3 rope*",),
    "runtime_tests/test_activation_rounding.py::test_whole_models_in_onnx_runtime_at_level_4": (
        "int4-channel-32",
    ),
    "runtime_tests/test_imported_kinds.py::"
    "test_what_others_quantized_is_what_both_runtimes_compute": (
        "weights, q4_0", "compressed-tensors, zero-points", "compressed-tensors, NVFP4", "GPTQ",
        "AWQ",
    ),
    "runtime_tests/test_onnx_further_models.py::test_logits_are_pytorchs": ("falcon*", "apertus*"),
    "runtime_tests/test_onnx_genai.py::"
    "test_the_builders_file_holds_the_checkpoint_and_computes_it": (
        "llama, all on a grid", "granite", "qwen3, tied",
    ),
    "runtime_tests/test_onnx_precision.py::"
    "test_integers_of_8_bits_on_both_sides_are_multiplied_exactly": ("{}", "*up_proj*q8_0*"),
    "runtime_tests/test_onnx_presets.py::test_onnx_runtime": ("cpu", "qnn", "webgpu"),
    "runtime_tests/test_onnx_presets.py::test_qnn_still_fails_on_ranges_that_are_computed": (),
    "runtime_tests/test_onnx_runtime.py::"
    "test_another_operator_set_and_an_architecture_that_genai_does_not_know": ("gpt_neox*",),
    "runtime_tests/test_onnx_tables.py::"
    "test_tables_compute_what_the_reference_does_and_heads_are_fused": (
        "2 bits, and a head", "tied, 4 bits", "bfloat16, tied, scaled",
    ),
    "runtime_tests/test_parity.py::test_trained_is_what_the_runtimes_compute": (
        "q4_0", "int4-channel",
    ),
    "runtime_tests/test_parity_rounded.py::test_over_ten_thousand_tokens": ("settings1-*",),
    "runtime_tests/test_real_models.py::test_both_files_are_proved": ("pycode-8m",),
    "runtime_tests/test_real_models.py::test_llama_cpp_reads_and_writes_its_text": ("pycode-8m",),
    "runtime_tests/test_real_models.py::test_onnx_runtime_over_a_whole_window_and_genai": (
        "pycode-8m",
    ),
    "runtime_tests/test_text_model.py::test_what_was_trained_of_the_text_model_alone": (
        "qwen3_vl",
    ),
    "tests/benchmarks/test_bench.py::test_forms_of_an_onnx_folder_are_compared": (),
    "tests/exporters/onnx/test_export.py::"
    "test_the_bytes_are_the_checkpoints_by_onnxs_own_reader": ("q4_0", "int4-channel"),
    "tests/exporters/test_recipes.py::test_onnx_holds_the_fused_weights_of_a_recipe": ("IQ4_NL",),
    "tests/kills/test_kills.py::"
    "test_a_killed_command_leaves_the_old_or_the_new_and_no_litter_that_stays": ("*--overwrite",),
    "tests/lrqat/atomic_files/test_atomic_files.py::"
    "test_whatever_fails_a_reader_finds_the_old_folder_or_the_new": (
        "*-kill", "names cannot be exchanged-error",
    ),
    "tests/lrqat/cli/test_gguf_size.py::test_so_they_are_of_other_architectures": (
        "gemma3", "olmo2, tied",
    ),
    "tests/lrqat/cli/test_gguf_size.py::test_so_they_are_on_further_grids": ("minima",),
    "tests/lrqat/layers/test_kernels.py::test_compiled_passes_give_the_same": ("int4-asym-g64",),
    "tests/lrqat/models/test_tying.py::test_checkpoint_and_exports_keep_the_head": (
        "with a prefix-on a grid", "without-unquantized",
    ),
    "tests/lrqat/training/data/test_sources.py::test_the_command_trains_on_a_mixture": ("True",),
    "tests/lrqat/training/test_estimate.py::test_llama_2_7b_fits": ("int*",),
    "tests/lrqat/training/test_estimate.py::test_the_estimate_is_near_the_measurement": (
        "plain", "checkpointing", "tied-head-on-a-grid", "accumulation", "self*", "gpt2",
    ),
    "tests/lrqat/training/test_runs.py::"
    "test_an_overwriting_run_that_is_killed_leaves_the_old_checkpoint_or_the_new": ("exchange*",),
    "tests/lrqat/training/test_training.py::"
    "test_training_lowers_the_loss_and_the_checkpoint_is_what_was_measured": (
        "fp32-self", "fixed-none",
    ),
    "tests/lrqat/training/test_training_options.py::"
    "test_a_run_gives_the_checkpoint_that_it_measured": (
        "method=scales", "method=lora*", "phi=int", "grid=int3*", "grid_for=*", "gradient*",
        "activations=int8-tensor*", "setting*", "streamed=True,range_init=l2,phi*",
    ),
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Mark them. Raises UsageError for what is listed and not there, unless cases are named."""
    cases, asked = {}, any("[" in str(argument) for argument in config.args)
    for item in items:
        test, _, case = item.nodeid.partition("[")
        if test in OFTEN:
            cases.setdefault(test, []).append((case.removesuffix("]"), item))
    for test, found in cases.items():
        for pattern in OFTEN[test]:
            if not asked and not any(fnmatchcase(case, pattern) for case, _ in found):
                raise pytest.UsageError(f"tests/support/nightly.py: {test} has no case {pattern}")
        for case, item in found:
            if not any(fnmatchcase(case, pattern) for pattern in OFTEN[test]):
                item.add_marker(pytest.mark.nightly)
