"""Class activation maps: which regions a class's logit hangs on, seen from one layer.

With A [H', W', C'] the layer's output, g the gradient of the class's logit by it, both per channel k:

    grad_cam             relu( sum_k mean(g_k) A_k )
    grad_cam_plus_plus   relu( sum_k w_k A_k ),  w_k = sum(relu(g_k) / (2 + sum(A_k) g_k))
    hires_cam            relu( sum_k g_k A_k )
    layer_cam            relu( sum_k relu(g_k) A_k )
    eigen_cam            relu( A v ), v the first right singular vector of A as [H' W', C']
    score_cam            relu( sum_k w_k A_k ),  w the softmax of the logits of the image masked by A_k

The layer is the last module with an output of more than one pixel, unless another is named. Where the
activation is a plain function behind that module, A is what comes before it (see `default_layer`).

All are enlarged bilinearly to the image and not negative. Only their shape is defined, not their
scale: compare maps by rank or cosine, and draw each over its own maximum.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust import programs
from jaxrobust.attribution.arguments import checked, predicted_if_none
from jaxrobust.attribution.layers import (
    activation,
    activation_and_gradient,
    layer_shapes,
    spatial_layer,
)
from jaxrobust.types import Array, LogitsFn


def grad_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """Grad-CAM: a layer's channels weighted by their mean gradient, what is positive of their sum.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module: a
        Classifier, or `lambda x: module.apply(variables, x)`.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: Path of a layer with an output [H', W', C'], as `layer_shapes` lists them; None takes
        the last one of more than one pixel, as it leaves its module (see `default_layer`).

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: Integer images, fractional labels.
      ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1; a layer
        that does not exist, has no [H', W', C'] output or is called twice. The message lists those
        that will do.

    References:
      Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
      Localization", ICCV 2017, equations 1 and 2, https://arxiv.org/abs/1610.02391
    """
    arguments = checked(logits_fn, images, labels)
    return programs.call(_from_gradient, *arguments, combine=_grad_cam, layer=layer)


def grad_cam_plus_plus(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """Grad-CAM++: a layer's channels weighted by positive gradients, each position by its own alpha.

    The score is Y = exp(f) of the logit f. In a piecewise linear network its n-th derivative by an
    activation is exp(f) g^n, so alpha = g^2 / (2 g^2 + sum(A) g^3) = 1 / (2 + sum(A) g), computed in
    the second form because powers of small gradients vanish in float32. In the weights exp(f) is one
    factor for a whole map and left out: it would overflow.

    Behind a ReLU the denominator is at least 2 wherever the gradient is positive, and only there does
    alpha count. Where activations are signed it can come close to 0, and one position would drown all
    others: alpha is 0 where the denominator is within 0.001 of 0.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
      WACV 2018, section 3.2 (alpha for the exponential score, weights), https://arxiv.org/abs/1710.11063
    """
    arguments = checked(logits_fn, images, labels)
    return programs.call(_from_gradient, *arguments, combine=_grad_cam_plus_plus, layer=layer)


def hires_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """HiResCAM: activation times gradient at each position; what is positive of the channels' sum.

    Unlike Grad-CAM's averaged gradients it points at positions that the logit hangs on. Behind a
    global average followed by a dense layer the two are the same.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
      neural networks", 2020, https://arxiv.org/abs/2011.08891
    """
    arguments = checked(logits_fn, images, labels)
    return programs.call(_from_gradient, *arguments, combine=_hires_cam, layer=layer)


def layer_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """LayerCAM: activations weighted by the positive gradient of their own position.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`; the method is meant for early, large layers too.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
      Transactions on Image Processing 2021, equations 6 and 7, https://doi.org/10.1109/TIP.2021.3089943
    """
    arguments = checked(logits_fn, images, labels)
    return programs.call(_from_gradient, *arguments, combine=_layer_cam, layer=layer)


def eigen_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """EigenCAM: a layer's output projected onto its first principal component.

    It needs no gradient and knows no class. As in the paper the output is not centred. A singular
    vector has no sign of its own: the one is taken whose projection sums to at least 0, which makes
    the map of a layer behind a ReLU positive wherever anything is active.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B]; checked but not used, so that all maps are called alike.
      layer: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
      section III, https://arxiv.org/abs/2008.00299
    """
    function, images, _ = checked(logits_fn, images, labels)
    return programs.call(_eigen_cam, function, images, layer=layer)


def score_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """Score-CAM: a layer's channels weighted by the logit of the image seen through them.

    Each channel is enlarged to the image and scaled to [0, 1]; the image times that mask gives a
    logit, and the softmax of the logits over the channels gives the weights. (The baseline that the
    paper subtracts from all of them cancels.) A constant channel masks everything. It needs no
    gradient, but one forward pass per channel: they run one after another, so that memory does not
    grow with their number.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
      CVPR workshops 2020, equations 5 to 8, https://arxiv.org/abs/1910.01279
    """
    return programs.call(_score_cam, *checked(logits_fn, images, labels), layer=layer)


def _product(one: Array, other: Array) -> Array:
    """A matrix product; GPUs would otherwise multiply with 10 bits of mantissa."""
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


def _grad_cam(outputs: Array, gradient: Array) -> Array:
    return _product(outputs, jnp.mean(gradient, axis=(0, 1)))


def _grad_cam_plus_plus(outputs: Array, gradient: Array) -> Array:
    denominator = 2 + jnp.sum(outputs, axis=(0, 1)) * gradient
    vanishing = jnp.abs(denominator) < 1e-3
    alpha = jnp.where(vanishing, 0.0, 1 / jnp.where(vanishing, 1.0, denominator))
    return _product(outputs, jnp.sum(alpha * jax.nn.relu(gradient), axis=(0, 1)))


def _hires_cam(outputs: Array, gradient: Array) -> Array:
    return jnp.sum(gradient * outputs, axis=-1)


def _layer_cam(outputs: Array, gradient: Array) -> Array:
    return jnp.sum(jax.nn.relu(gradient) * outputs, axis=-1)


def _drawn(heat: Array, images: Array) -> Array:
    """What is positive of [H', W'], enlarged to [H, W]."""
    return jax.image.resize(jax.nn.relu(heat), images.shape[1:3], "bilinear")


def _from_gradient(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None,
    *,
    combine: Callable[[Array, Array], Array],
    layer: str | None,
) -> Array:
    layer, shape = spatial_layer(layer_shapes(logits_fn, images.shape[1:]), layer)

    def one(image: Array, label: Array) -> Array:
        outputs, gradient = activation_and_gradient(logits_fn, image, label, layer, shape)
        return _drawn(combine(outputs, gradient), images)

    return jax.vmap(one)(images, predicted_if_none(logits_fn, images, labels))


def _eigen_cam(logits_fn: LogitsFn, images: Array, *, layer: str | None) -> Array:
    layer, shape = spatial_layer(layer_shapes(logits_fn, images.shape[1:]), layer)

    def one(image: Array) -> Array:
        outputs = activation(logits_fn, image, layer).reshape(-1, shape[-1])
        projection = _first_projection(outputs)
        signed = jnp.where(jnp.sum(projection) < 0, -projection, projection)
        return _drawn(signed.reshape(shape[:2]), images)

    return jax.vmap(one)(images)


def _first_projection(matrix: Array) -> Array:
    """Of [N, C] the projection [N] on the first right singular vector, up to its sign.

    By the last eigenvector of the smaller of the two Gram matrices, min(N, C) on a side.
    """
    positions, channels = matrix.shape
    if channels <= positions:
        _, vectors = jnp.linalg.eigh(_product(matrix.T, matrix))
        return _product(matrix, vectors[:, -1])
    squares, vectors = jnp.linalg.eigh(_product(matrix, matrix.T))
    return jnp.sqrt(jnp.maximum(squares[-1], 0.0)) * vectors[:, -1]


def _score_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None, *, layer: str | None
) -> Array:
    layer, _ = spatial_layer(layer_shapes(logits_fn, images.shape[1:]), layer)

    def one(image: Array, label: Array) -> Array:
        outputs = activation(logits_fn, image, layer)

        def score(channel: Array) -> Array:
            mask = jax.image.resize(channel, image.shape[:2], "bilinear")
            low, high = jnp.min(mask), jnp.max(mask)
            mask = (mask - low) / jnp.where(high == low, 1.0, high - low)
            logits = programs.fast(logits_fn)((image * mask[..., None])[None])
            return logits[0, label].astype(jnp.float32)

        weights = jax.nn.softmax(jax.lax.map(score, jnp.moveaxis(outputs, -1, 0)))
        return _drawn(_product(outputs, weights), images)

    return jax.vmap(one)(images, predicted_if_none(logits_fn, images, labels))
