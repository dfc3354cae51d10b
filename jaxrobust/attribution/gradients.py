"""Maps from the gradient of a class's logit with respect to the pixels.

    saliency               max over channels of |grad f(x)|
    smooth_grad            the same of the mean of grad f(x + noise)
    input_x_gradient       sum over channels of x * grad f(x)
    integrated_gradients   sum over channels of (x - b) * the mean of grad f between b and x

The first two are not negative. The last two are signed and say what a pixel adds to the logit or takes
from it; their absolute value says how much a pixel matters.
"""

import jax
import jax.numpy as jnp

from jaxrobust import checks, programs
from jaxrobust.attribution.arguments import checked, pixels_like, predicted_if_none
from jaxrobust.types import Array, LogitsFn, as_key


def saliency(logits_fn: LogitsFn, images: Array, labels: Array | None = None) -> Array:
    """Computes the largest absolute gradient of a class's logit over the channels of each pixel.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default the predicted classes.

    Returns:
      float32 [B, H, W], not negative, in logits per pixel unit.

    Raises:
      TypeError: The images are integers, or the labels are not.
      ValueError: Shapes do not fit, images are outside [0, 1], or labels are outside 0 .. K - 1.

    Example:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([2 * x[:, 0, 0, 0], x[:, 0, 1, 0]], axis=1)
      >>> saliency(logits_fn, jnp.ones((1, 1, 2, 1)), jnp.array([0])).tolist()
      [[[2.0, 0.0]]]

    References:
      Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2013, section 3.1,
      https://arxiv.org/abs/1312.6034
    """
    return programs.call(_saliency, *checked(logits_fn, images, labels))


def smooth_grad(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    *,
    key: Array,
    num_samples: int = 25,
    noise_std: float = 0.15,
) -> Array:
    """SmoothGrad: computes saliency from the gradient averaged over noisy copies of the image.

    The signed gradients are averaged, and then their largest absolute value over the channels is taken,
    so that noise_std 0 gives `saliency`. As in the paper, noisy pixels are not clipped.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default the predicted classes.
      key: A PRNG key; image i uses it folded with i.
      num_samples: The number of noisy copies of each image, at least 1; each costs one gradient.
      noise_std: The standard deviation of the Gaussian noise in pixel units, not negative. The paper
        recommends 0.1 to 0.2 of the range of the pixels.

    Returns:
      float32 [B, H, W], not negative, in logits per pixel unit.

    Raises:
      TypeError: The images are integers, or labels or num_samples are not.
      ValueError: Shapes do not fit, images are outside [0, 1], labels are outside 0 .. K - 1,
        num_samples is below 1, or noise_std is negative.

    References:
      Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 3,
      https://arxiv.org/abs/1706.03825
    """
    checks.integer("num_samples", num_samples, minimum=1)
    checks.number("noise_std", noise_std, minimum=0.0)
    std = jnp.asarray(noise_std, jnp.float32)
    arguments = checked(logits_fn, images, labels)
    return programs.call(_smooth_grad, *arguments, as_key(key), std, num_samples=int(num_samples))


def input_x_gradient(logits_fn: LogitsFn, images: Array, labels: Array | None = None) -> Array:
    """Multiplies the pixels by their gradients and sums over the channels.

    For a network without biases whose activations are piecewise linear through 0 (such as ReLU), the
    map sums to the logit.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default the predicted classes.

    Returns:
      float32 [B, H, W], signed, in logits.

    Raises:
      TypeError: The images are integers, or the labels are not.
      ValueError: Shapes do not fit, images are outside [0, 1], or labels are outside 0 .. K - 1.

    Example:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([2 * x[:, 0, 0, 0] - x[:, 0, 1, 0], x[:, 0, 1, 0]], axis=1)
      >>> input_x_gradient(logits_fn, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])).tolist()
      [[[1.0, -0.5]]]

    References:
      Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating
      Activation Differences", 2016, https://arxiv.org/abs/1605.01713
    """
    return programs.call(_input_x_gradient, *checked(logits_fn, images, labels))


def integrated_gradients(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    *,
    baseline: float | Array = 0.0,
    num_steps: int = 50,
) -> Array:
    """Integrated gradients: computes what each pixel adds to the logit on the way from a baseline.

    The gradient is integrated along the straight line from the baseline to the image by the midpoint
    rule. The map of an image sums to f(image) - f(baseline), up to the error of that rule.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default the classes predicted for the images.
      baseline: An image without evidence, in [0, 1]: a number, a colour [C], an image [H, W, C], or one
        image for each. The map is 0 at pixels that equal the baseline.
      num_steps: The number of points on the line, at least 1; each costs one gradient.

    Returns:
      float32 [B, H, W], signed, summed over the channels, in logits.

    Raises:
      TypeError: The images are integers, labels or num_steps are not, or the baseline is not numeric.
      ValueError: Shapes do not fit, images or the baseline are outside [0, 1], labels are outside
        0 .. K - 1, or num_steps is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0] ** 2, x[:, 0, 1, 0]], axis=1)
      >>> maps = integrated_gradients(logits_fn, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]))
      >>> maps.round(4).tolist()  # 0.5 ** 2 - 0
      [[[0.25, 0.0]]]

    References:
      Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, equation 1 and
      proposition 1 (completeness), https://arxiv.org/abs/1703.01365
    """
    checks.integer("num_steps", num_steps, minimum=1)
    function, images, labels = checked(logits_fn, images, labels)
    baselines = pixels_like("baseline", baseline, images)
    arguments = (function, images, labels, baselines)
    return programs.call(_integrated_gradients, *arguments, num_steps=int(num_steps))


def _gradient(logits_fn: LogitsFn, image: Array, label: Array) -> Array:
    return jax.grad(lambda x: programs.fast(logits_fn)(x[None])[0, label])(image)


def _largest(gradient: Array) -> Array:
    return jnp.max(jnp.abs(gradient), axis=-1)


def _saliency(logits_fn: LogitsFn, images: Array, labels: Array | None) -> Array:
    labels = predicted_if_none(logits_fn, images, labels)
    return jax.vmap(lambda x, y: _largest(_gradient(logits_fn, x, y)))(images, labels)


def _smooth_grad(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None,
    key: Array,
    noise_std: Array,
    *,
    num_samples: int,
) -> Array:
    def one(index: Array, image: Array, label: Array) -> Array:
        def add(total: Array, key: Array) -> tuple[Array, None]:
            noisy = image + noise_std * jax.random.normal(key, image.shape)
            return total + _gradient(logits_fn, noisy, label), None

        keys = jax.random.split(jax.random.fold_in(key, index), num_samples)
        return _largest(jax.lax.scan(add, jnp.zeros_like(image), keys)[0] / num_samples)

    labels = predicted_if_none(logits_fn, images, labels)
    return jax.vmap(one)(jnp.arange(len(images)), images, labels)


def _input_x_gradient(logits_fn: LogitsFn, images: Array, labels: Array | None) -> Array:
    labels = predicted_if_none(logits_fn, images, labels)
    return jax.vmap(lambda x, y: jnp.sum(x * _gradient(logits_fn, x, y), -1))(images, labels)


def _integrated_gradients(
    logits_fn: LogitsFn, images: Array, labels: Array | None, baselines: Array, *, num_steps: int
) -> Array:
    def one(image: Array, label: Array, baseline: Array) -> Array:
        def add(total: Array, fraction: Array) -> tuple[Array, None]:
            point = baseline + fraction * (image - baseline)
            return total + _gradient(logits_fn, point, label), None

        midpoints = (jnp.arange(num_steps) + 0.5) / num_steps
        total, _ = jax.lax.scan(add, jnp.zeros_like(image), midpoints)
        return jnp.sum((image - baseline) * total / num_steps, axis=-1)

    labels = predicted_if_none(logits_fn, images, labels)
    return jax.vmap(one)(images, labels, baselines)
