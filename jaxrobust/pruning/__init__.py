"""Smaller networks: magnitude pruning, schedules, int8 weights, and files that are smaller too."""

from jaxrobust.pruning.counts import (
    LayerSparsity,
    ParameterCounts,
    layer_sparsity,
    parameter_counts,
    sparsity_of,
)
from jaxrobust.pruning.magnitude import (
    global_magnitude,
    layerwise_magnitude,
    masks_from_scores,
    random,
)
from jaxrobust.pruning.masks import apply_masks, keep_all, kernel_paths
from jaxrobust.pruning.quantization import (
    QuantizedApply,
    QuantizedKernel,
    dequantize,
    fake_quantize,
    quantize,
    quantized_apply,
)
from jaxrobust.pruning.schedules import Round, cubic_schedule, geometric_schedule, iterative
from jaxrobust.pruning.sensitivity import SensitivityRow, sensitivity
from jaxrobust.pruning.storage import load_sparse, save_sparse

__all__ = [
    "LayerSparsity",
    "ParameterCounts",
    "QuantizedApply",
    "QuantizedKernel",
    "Round",
    "SensitivityRow",
    "apply_masks",
    "cubic_schedule",
    "dequantize",
    "fake_quantize",
    "geometric_schedule",
    "global_magnitude",
    "iterative",
    "keep_all",
    "kernel_paths",
    "layer_sparsity",
    "layerwise_magnitude",
    "load_sparse",
    "masks_from_scores",
    "parameter_counts",
    "quantize",
    "quantized_apply",
    "random",
    "save_sparse",
    "sensitivity",
    "sparsity_of",
]
