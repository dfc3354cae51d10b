"""Attribution: what in an image a network's answer hangs on."""

from jaxrobust.attribution.layers import layer_shapes
from jaxrobust.attribution.maps import default_layer, grad_cam, saliency

__all__ = ["default_layer", "grad_cam", "layer_shapes", "saliency"]
