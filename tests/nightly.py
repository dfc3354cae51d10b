"""Which tests are fast, and which run by `pytest -m nightly` and are left out without it."""

import fnmatch

import pytest

# Slow by nature: whole studies, trainings in several processes, whole pages of figures.
NIGHTLY = (
    "test_attacks.py::test_reference_network",
    "test_attacks.py::test_works_in_a_gradient_around_it_whatever_computes_convolutions",
    "test_certificates_docs.py::test_bounds_hold_for_what_autoattack_found",
    "test_certificates_docs.py::test_certified_is_at_most_robust_and_that_at_most_clean",
    "test_certificates_docs.py::test_the_smoothed_classifier_beside_it",
    "test_certificates_docs.py::test_the_rates_of_the_page",
    "test_certificates_sound.py::test_the_librarys_networks*",
    "test_certificates_sound.py::test_the_other_networks_have_bounds_too*",
    "test_cifar_mlp.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_compression_docs.py::test_the_examples_make_what_the_text_says",
    "test_data_cifar_jpeg.py::test_jpeg_of_the_real_file",
    "test_data_resizing.py::test_a_network_learns_on_small_images_and_answers_large_ones",
    "test_diagnostics.py::test_each_kind_is_called_what_it_is[[]sound]",
    "test_experiments.py::test_quickstart_quick",
    "test_experiments.py::test_sports10_quick_stopped_and_continued",
    "test_experiments.py::test_train_by_several_methods",
    "test_export.py::test_depthwise_convolutions_and_their_gradients",
    "test_models.py::*[[]densenet121]",
    "test_models.py::*[[]mobilenet_v2]",
    "test_models.py::*[[]resnet50]",
    "test_not_silent.py::test_auto_attack_is_as_strong_with_masked_classes[[]standard]",
    "test_program_forms.py::test_one_network_in_four_frameworks_is_one_function",
    "test_pruned_benchmark.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_pruning_docs.py::test_the_module_of_ones_own",
    "test_pruning_docs.py::test_the_saved_network_loads_by_its_name_and_widths",
    "test_pruning_docs.py::test_the_shrunk_state_is_one_of_the_smaller_network",
    "test_pruning_docs.py::test_the_shrunk_network_computes_what_the_masked_one_does",
    "test_pruning_filters.py::*[[]densenet121]",
    "test_pruning_filters.py::*[[]mobilenet_v*]",
    "test_queue.py::test_one_batch_and_the_queue_find_the_same",
    "test_queue.py::test_two_devices_give_the_verdicts_of_one",
    "test_queue.py::test_two_processes_give_the_verdicts_of_one",
    "test_robust_compression.py::test_masks_of_the_control_are_as_many_and_at_random",
    "test_robust_compression.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_sports10_published.py::test_the_published_figures_come_out*",
    "test_training_compression.py::test_admm_descends_the_augmented_lagrangian",
    "test_training_compression_fit.py::test_a_run_that_was_stopped_ends_like_one_that_was_not*",
    "test_training_compression_fit.py::test_every_method_ends_at_exactly_its_budget_and_trains*",
    "test_training_compression_fit.py::test_free_training_and_a_schedule_of_attacks_compress_too",
    "test_training_compression_fit.py::test_many_steps_in_one_call_do_not_step_over_an_update",
    "test_training_compression_fit.py::test_two_phases_end_at_the_masks_of_the_compressed_run",
    "test_training_devices.py::test_devices_and_processes_share_a_batch_and_change_nothing*",
    "test_training_methods.py::test_a_schedule_attacks_as_its_stages_say",
    "test_training_resume.py::test_interrupted_run_says_how_to_go_on_and_does",
    "test_training_resume.py::test_killed_run_ends_like_an_undisturbed_one*",
    "test_users_networks.py::*",
)
# Tables of many rows: the rows that the fast set keeps. The others are nightly.
_ATTACKS = ("fgsm", "pgd", "pgd-l1", "apgd-t", "square", "fab-l2", "cw", "deepfool")
_KINDS = ("bim-l2-last", "pgd", "mifgsm", "noise", "cw", "deepfool")
FAST_ROWS = {
    "test_attacks.py::test_a_nan_row_spoils_no_other_row": _ATTACKS,
    "test_attacks.py::test_an_infinite_gradient_disarms_no_attack": _KINDS,
    "test_attacks.py::test_compiled_equals_uncompiled": _KINDS,
    "test_attacks.py::test_counts_queries_and_gradients": _ATTACKS,
    "test_attacks.py::test_does_not_depend_on_the_batch": _ATTACKS,
    "test_attacks.py::test_epsilon_zero_is_the_identity": _ATTACKS,
    "test_attacks.py::test_every_image_has_its_own_epsilon": _ATTACKS,
    "test_attacks.py::test_one_compilation_for_all_epsilons_and_weights": _ATTACKS,
    "test_attacks.py::test_same_key_same_result": _ATTACKS,
    "test_attacks.py::test_stays_in_the_ball_and_in_the_box": _ATTACKS,
    "test_attacks.py::test_success_recomputes_from_the_images": _ATTACKS,
    "test_attacks.py::test_works_with_64_bits_enabled": _ATTACKS,
    "test_certificates_sound.py::test_no_point_of_the_ball_is_outside": (
        *("residual", "gelu", "square", "clip", "two branches", "remat", "einsum", "gather"),
    ),
    "test_experiments.py::test_train_errors_are_one_line": ("options0*", "options5*", "options8*"),
    "test_model_invariants.py::*": ("cnn", "mlp"),
    "test_models.py::test_folded_evaluation_equals_batch_norm": ("cnn", "mlp", "resnet_small"),
    "test_program_forms.py::test_bfloat16_is_as_exact_as_plain": ("linen", "mobilenet_v2", "vgg"),
    "test_not_silent.py::test_masked_classes_change_no_verdict": ("*--inf",),
    "test_not_silent.py::test_the_ways_of_evaluating_under_strict_settings": ("type", "nan"),
    "test_ops.py::test_input_gradients_of_the_networks_equal_plain_ones": ("xla-cnn", "onednn-cnn"),
    "test_not_silent.py::test_probabilities_are_noticed": ("float32",),
    "test_ops.py::test_convolution_gradients_equal_plain": ("xla-*-scan", "onednn-stride 2-scan"),
    "test_ops.py::test_transposed_convolutions_equal_plain": ("xla-*",),
    "test_ops.py::test_what_follows_a_convolution_equals_plain": (
        "xla-padded-*",
        "onednn-*-True-True",
    ),
    "test_program_forms.py::test_forms_under_strict_settings": ("linen-*",),
    "test_program_forms.py::test_values_and_gradients_equal_plain": (
        *("linen", "equinox", "equinox pools", "mobilenet_v2", "unet", "shared_convolution"),
        *("resnext", "preactivation", "multiplier"),
    ),
    "test_program_forms.py::test_values_in_float32": ("plain", "nnx", "vgg"),
    "test_queue.py::test_verdicts_do_not_depend_on_the_lanes": ("groups2-14",),
    "test_training_methods.py::test_every_method_learns_what_withstands_an_attack": (
        "free",
        "trades*",
    ),
}


def is_nightly(item: pytest.Item) -> bool:
    """Whether the fast set leaves this test out."""
    name = f"{item.path.name}::{item.name}"
    if any(fnmatch.fnmatch(name, pattern) for pattern in NIGHTLY):
        return True
    row = getattr(getattr(item, "callspec", None), "id", None)
    test = name.partition("[")[0]
    return row is not None and any(
        fnmatch.fnmatch(test, table) and not any(fnmatch.fnmatch(row, kept) for kept in rows)
        for table, rows in FAST_ROWS.items()
    )
