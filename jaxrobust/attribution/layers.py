"""The layers of a linen network from outside: their names, and a handle on their outputs.

The network is not changed. While it runs, flax tells an interceptor of every layer that is called;
the interceptor sees the output and may add to it. So this works for any function that calls a linen
module somewhere inside.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust import programs
from jaxrobust.types import Array, LogitsFn


def layer_shapes(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> dict[str, tuple]:
    """The layers that run when an image is classified, in the order in which they finish.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K], calling a linen module.
      image_shape: (H, W, C).

    Returns:
      {path: shape of the output for one image, without the batch}, paths like
      "stage_0_block_0/conv_1". A layer that fused computation skips is not in it.

    Raises:
      ValueError: An image_shape of other than three numbers.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> dense = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])
      >>> variables = dense.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
      >>> layer_shapes(lambda x: dense.apply(variables, x), (2, 2, 1))
      {'layers_1': (3,)}
    """
    if len(image_shape) != 3:
        raise ValueError(f"`image_shape` must be (H, W, C), got {image_shape!r}.")
    shapes: dict[str, tuple] = {}

    def record(path: str, output: Array) -> Array:
        shapes[path] = output.shape[1:]
        return output

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # A function of its own for every call: a cached trace would run no interceptor.
    jax.eval_shape(lambda x: _intercepted(logits_fn, x, record), images)
    return shapes


def default_layer(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> str | None:
    """The layer that class activation maps take by default: the last one of more than one pixel.

    A layer is a linen module, and what is seen of it is its output. Where the activation is a plain
    function, as in `nn.relu(nn.Conv(...)(x))`, that is the module's output before the activation,
    with its negative values. Name a layer whose module applies the activation itself, or put the
    activation into a module, to explain what comes after it.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      image_shape: (H, W, C).

    Returns:
      Its path, or None for a network that has no such layer.
    """
    return _last_spatial(layer_shapes(logits_fn, image_shape))


def spatial_layer(
    shapes: dict[str, tuple[int, ...]], layer: str | None
) -> tuple[str, tuple[int, ...]]:
    """The layer asked for, or the last spatial one, with its shape.

    Args:
      shapes: From `layer_shapes`.
      layer: A path, or None.

    Returns:
      (path, (H, W, C)).

    Raises:
      ValueError: No such layer, or one whose output is not [H, W, C]; the message lists those that
        will do.
    """
    spatial = {path: shape for path, shape in shapes.items() if len(shape) == 3}
    if layer is None:
        layer = _last_spatial(shapes)
        if layer is None:
            raise ValueError(
                "The network has no layer with an output of [H, W, C], which class activation maps "
                "need; "
                + (
                    f"its layers are {', '.join(shapes)}."
                    if shapes
                    else "it calls no linen module."
                )
            )
    if layer not in spatial:
        described = ", ".join(f"{path} {list(shape)}" for path, shape in spatial.items())
        reason = "has no output of [H, W, C]" if layer in shapes else "is no layer of the network"
        raise ValueError(f"`layer` {layer!r} {reason}; choose one of: {described}.")
    return layer, spatial[layer]


def activation(logits_fn: LogitsFn, image: Array, layer: str) -> Array:
    """A layer's output for one image, without a gradient.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      image: [H, W, C].
      layer: A path of `layer_shapes`.

    Raises:
      ValueError: A layer that is called more than once: it has no one output.
    """
    return _logits_and_activation(logits_fn, image, layer, jnp.zeros(()))[1]


def activation_and_gradient(
    logits_fn: LogitsFn, image: Array, label: Array, layer: str, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """A layer's output for one image, and the gradient of the label's logit by that output.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      image: [H, W, C].
      label: int32 scalar.
      layer: A path of `layer_shapes`.
      shape: Of the layer's output, without the batch.

    Returns:
      (activation, gradient), both of that shape and float32, whatever the network computes in.

    Raises:
      ValueError: A layer that is called more than once: it has no one output.
    """

    def logit(delta: Array) -> tuple[Array, Array]:
        logits, output = _logits_and_activation(logits_fn, image, layer, delta)
        return logits[label], output

    gradient, output = jax.grad(logit, has_aux=True)(jnp.zeros(shape, jnp.float32))
    return output, gradient


def _last_spatial(shapes: dict[str, tuple[int, ...]]) -> str | None:
    large = [p for p, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1]
    return large[-1] if large else None


def _logits_and_activation(
    logits_fn: LogitsFn, image: Array, layer: str, delta: Array
) -> tuple[Array, Array]:
    """The logits [K] with delta added to the layer's output, and that output before."""

    def both(images: Array, delta: Array) -> tuple[Array, Array]:
        outputs: list[Array] = []

        def add_delta(path: str, output: Array) -> Array:
            if path != layer:
                return output
            outputs.append(output)
            # In the network's own type: what comes after the layer shall not compute in another.
            return output + delta[None].astype(output.dtype)

        logits = _intercepted(logits_fn, images, add_delta)
        if len(outputs) != 1:
            raise ValueError(
                f"`layer` {layer!r} is called {len(outputs)} times for one image; choose a layer "
                "that is called once."
            )
        return logits[0].astype(jnp.float32), outputs[0][0].astype(jnp.float32)

    logits, output = programs.fast(both)(image[None], delta)
    return logits, output


def _intercepted(logits_fn: LogitsFn, images: Array, look: Callable[[str, Array], Array]) -> Array:
    def interceptor(call: Callable, args: tuple, kwargs: dict, context: object) -> object:
        output = call(*args, **kwargs)
        path = "/".join(context.module.path)  # type: ignore[attr-defined]
        named = path and context.method_name == "__call__"  # type: ignore[attr-defined]
        return look(path, output) if named and isinstance(output, jax.Array) else output

    # Without jit: a network compiled before would be taken from jax's cache, and no layer be called.
    with nn.intercept_methods(interceptor), jax.disable_jit():
        return logits_fn(images)
