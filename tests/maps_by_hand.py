"""Maps of layers in a few lines of plain jax."""

import jax
import jax.numpy as jnp


def by_hand(rest, tokens, labels, size):
    """Grad-CAM of tokens [B, T, C], or of a map, of which `rest` makes logits."""

    def one(tokens, label):
        gradient = jax.grad(lambda x: rest(x[None])[0, label].astype(jnp.float32))(tokens)
        tokens, gradient = (x.astype(jnp.float32) for x in (tokens, gradient))
        last = size[0] * size[1]
        parts = [x.reshape(-1, x.shape[-1])[-last:].reshape(*size, -1) for x in (tokens, gradient)]
        return jax.nn.relu(parts[0] @ parts[1].mean((0, 1)))

    return jax.vmap(one)(tokens, labels)


def enlarged(heat, size):
    return jax.image.resize(heat, (len(heat), *size), "bilinear")
