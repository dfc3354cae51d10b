"""Attribution: maps of what matters in an image for a network's answer, and tests of such maps."""

from jaxrobust.attribution.agreement import map_shift, rank_correlation
from jaxrobust.attribution.class_activation import (
    Seen,
    cam_from_gradient,
    cam_from_layer,
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    score_cam,
)
from jaxrobust.attribution.faithfulness import deletion_curve, insertion_curve, random_maps
from jaxrobust.attribution.gradients import (
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from jaxrobust.attribution.layers import Layer, Layers, layers
from jaxrobust.attribution.methods import METHODS, Method
from jaxrobust.attribution.occlusion import occlusion
from jaxrobust.attribution.randomisation import cascading_randomisation

__all__ = [
    "METHODS",
    "Layer",
    "Layers",
    "Method",
    "Seen",
    "cam_from_gradient",
    "cam_from_layer",
    "cascading_randomisation",
    "deletion_curve",
    "eigen_cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "input_x_gradient",
    "insertion_curve",
    "integrated_gradients",
    "layer_cam",
    "layers",
    "map_shift",
    "occlusion",
    "random_maps",
    "rank_correlation",
    "saliency",
    "score_cam",
    "smooth_grad",
]
