"""Compression of networks: pruning of weights and filters, pruning schedules, and int8 weights."""

from jaxrobust.pruning import admm
from jaxrobust.pruning.channel_groups import ChannelGroup, ChannelGroups, channel_groups
from jaxrobust.pruning.constraints import (
    Constraint,
    Funnel,
    Irregular,
    NofM,
    Redundant,
    with_followers,
)
from jaxrobust.pruning.counts import (
    LayerSparsity,
    ParameterCounts,
    layer_sparsity,
    parameter_counts,
    sparsity_of,
)
from jaxrobust.pruning.criteria import (
    CRITERIA,
    Criterion,
    Filters,
    Makers,
    filter_scores,
    summed,
)
from jaxrobust.pruning.filters import keep_filters, prune_filters
from jaxrobust.pruning.magnitude import (
    global_magnitude,
    layerwise_magnitude,
    masks_from_scores,
    random,
)
from jaxrobust.pruning.masks import Kernel, apply_masks, keep_all, kernel_paths
from jaxrobust.pruning.quantization import fake_quantize, quantize
from jaxrobust.pruning.schedules import (
    Round,
    cubic_schedule,
    exponential_schedule,
    geometric_schedule,
    iterative,
)
from jaxrobust.pruning.sensitivity import SensitivityRow, sensitivity
from jaxrobust.pruning.shrinking import (
    check_shrinking,
    filter_masks,
    kept_filters,
    shrink,
    shrink_state,
)
from jaxrobust.types import QuantizedKernel, dequantize

__all__ = [
    "CRITERIA",
    "ChannelGroup",
    "ChannelGroups",
    "Constraint",
    "Criterion",
    "Filters",
    "Funnel",
    "Irregular",
    "Kernel",
    "LayerSparsity",
    "Makers",
    "NofM",
    "ParameterCounts",
    "QuantizedKernel",
    "Redundant",
    "Round",
    "SensitivityRow",
    "admm",
    "apply_masks",
    "channel_groups",
    "check_shrinking",
    "cubic_schedule",
    "dequantize",
    "exponential_schedule",
    "fake_quantize",
    "filter_masks",
    "filter_scores",
    "geometric_schedule",
    "global_magnitude",
    "iterative",
    "keep_all",
    "keep_filters",
    "kept_filters",
    "kernel_paths",
    "layer_sparsity",
    "layerwise_magnitude",
    "masks_from_scores",
    "parameter_counts",
    "prune_filters",
    "quantize",
    "random",
    "sensitivity",
    "shrink",
    "shrink_state",
    "sparsity_of",
    "summed",
    "with_followers",
]
