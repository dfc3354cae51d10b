"""Every fast form against the plain one and against finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import SMALL

from jaxrobust import compilation, models, ops
from jaxrobust.ops import conv

CONVOLUTIONS = [
    # rows, C_in, C_out, stride, padding, size
    (3, 3, 8, 1, 1, 8),
    (3, 8, 16, 1, 1, 8),
    (5, 8, 4, 1, 2, 8),
    (3, 8, 4, 1, 0, 8),
    (3, 8, 16, 2, 1, 8),
    (3, 8, 16, 2, 1, 7),  # odd: the plain form
    (1, 8, 16, 1, 0, 8),
    (1, 8, 16, 2, 0, 8),
    (1, 8, 16, 2, 0, 7),
    (3, 8, 16, 1, 1, 2),  # from here on few positions: a matrix product for each
    (3, 8, 16, 1, 1, 1),
    (5, 8, 4, 1, 2, 2),
    (3, 8, 4, 1, 0, 4),
]


def plain_convolution(images, kernel, strides, padding):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_depthwise(images, kernel, strides):
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def plain_fused(images, kernel, bias, residual, strides, padding):
    outputs = plain_convolution(images, kernel, strides, padding) + bias
    return jax.nn.relu(outputs if residual is None else outputs + residual)


def plain_max_pool(images):
    window, pad = (1, 2, 2, 1), "VALID"
    return lax.reduce_window(images, -jnp.inf, lax.max, window, window, pad)


def plain_average_pool(images):
    window = (1, 2, 2, 1)
    return lax.reduce_window(images, 0.0, lax.add, window, window, "VALID") / 4


def assert_close(actual, expected, tolerance=1e-5):
    """To 1e-5 of the largest value: what float32 sums of some hundred terms can promise."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def in_scan(function):
    """The function inside a lax.scan, where XLA lays data out differently."""

    def looped(*arguments):
        def body(carry, _):
            return function(*arguments), None

        start = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *arguments))
        return lax.scan(body, start, length=2)[0]

    return looped


def convolution_case(rows, inputs, outputs, stride, padding, size):
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(keys[0], (3, size, size, inputs))
    kernel = jax.random.normal(keys[1], (rows, rows, inputs, outputs)) / rows
    strides, pads = (stride, stride), ((padding, padding), (padding, padding))
    shape = jax.eval_shape(lambda x, w: plain_convolution(x, w, strides, pads), images, kernel)
    cotangent = jax.random.normal(keys[2], shape.shape)
    return images, kernel, cotangent, strides, pads, keys[3]


@pytest.fixture(scope="module", params=["xla", "onednn"])  # caches are cleared twice, not 40 times
def library(request):
    """What computes the convolutions."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "onednn":
            patch.setenv("JAXROBUST_ONEDNN", "1")
            try:
                compilation.with_onednn()
            except ValueError as error:
                pytest.skip(str(error))
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


def test_onednn_is_asked_where_it_was_tested(monkeypatch):
    monkeypatch.delenv("JAXROBUST_ONEDNN", raising=False)
    assert not compilation.with_onednn()
    monkeypatch.setenv("JAXROBUST_ONEDNN", "1")
    monkeypatch.setattr(compilation.jaxlib, "__version__", "0.99.0")
    with pytest.raises(ValueError, match="JAXROBUST_ONEDNN=1 needs jaxlib .* got jaxlib 0.99.0"):
        compilation.with_onednn()
    monkeypatch.setenv("JAXROBUST_ONEDNN", "yes")
    with pytest.raises(ValueError, match=r"`JAXROBUST_ONEDNN` must be one of \('', '0', '1'\)"):
        compilation.with_onednn()


def test_onednn_is_used_where_asked(library):
    images, kernel, _, strides, pads, _ = convolution_case(*CONVOLUTIONS[1])
    program = jax.jit(lambda x, w: ops.convolution(x, w, strides, pads)).lower(images, kernel)
    assert ("onednn" in program.as_text()) == (library == "onednn")
    # Types that it does not have, no images at all, and images that the kernel does not fit into.
    for other in (images.astype(jnp.float16), images[:0], images[:, :1]):
        padding = pads if other.shape[1] == 8 else ((0, 0), (0, 0))
        outputs = ops.convolution(other, kernel.astype(other.dtype), strides, padding)
        expected = plain_convolution(other, kernel.astype(other.dtype), strides, padding)
        assert outputs.shape == expected.shape


def test_convolutions_of_bfloat16_and_under_vmap(library):
    images, kernel, _, strides, pads, key = convolution_case(*CONVOLUTIONS[1])
    small, coarse = images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    expected = plain_convolution(*(x.astype(jnp.float32) for x in (small, coarse)), strides, pads)
    actual = ops.convolution(small, coarse, strides, pads)
    assert actual.dtype == jnp.bfloat16
    assert_close(actual.astype(jnp.float32), expected, tolerance=1e-2)
    kernels = jax.random.normal(key, (2, *kernel.shape))
    stacked = jax.vmap(lambda w: ops.convolution(images, w, strides, pads))(kernels)
    assert_close(stacked[1], plain_convolution(images, kernels[1], strides, pads))


@pytest.mark.parametrize("loop", [lambda f: f, in_scan], ids=["plain", "scan"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.usefixtures("library")
def test_convolution_gradients_equal_plain(case, loop):
    images, kernel, cotangent, strides, pads, _ = convolution_case(*case)

    def gradients(function):
        def loss(x, w):
            return jnp.sum(function(x, w, strides, pads) * cotangent)

        return compilation.jit(loop(jax.value_and_grad(loss, (0, 1))))(images, kernel)

    assert_close(gradients(ops.convolution), gradients(plain_convolution))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("case", CONVOLUTIONS[:2] + CONVOLUTIONS[4:5] + CONVOLUTIONS[9:10], ids=str)
def test_fused_gradients_equal_plain(case, residual):
    images, kernel, cotangent, strides, pads, key = convolution_case(*case)
    bias = jax.random.normal(key, kernel.shape[-1:])
    added = jax.random.normal(jax.random.key(9), cotangent.shape) if residual else None

    def gradients(function):
        def loss(x, w, b, r):
            return jnp.sum(function(x, w, b, r, strides, pads) * cotangent)

        return compilation.jit(in_scan(jax.value_and_grad(loss, (0, 1, 2, 3))))(
            images, kernel, bias, added
        )

    assert_close(gradients(ops.convolution_bias_relu), gradients(plain_fused))


@pytest.mark.parametrize(
    "fast, plain",
    [(ops.max_pool, plain_max_pool), (ops.average_pool, plain_average_pool)],
    ids=["max", "average"],
)
def test_pool_behind_a_convolution_equals_plain(fast, plain):
    # Behind a convolution and inside a loop: where a reshape view gave false gradients.
    images, kernel, _, strides, pads, key = convolution_case(3, 8, 16, 1, 1, 8)
    weights = jax.random.normal(key, (3, 4, 4, 16))

    def gradients(pool, convolution):
        def loss(x):
            return jnp.sum(pool(convolution(x, kernel, strides, pads)) * weights)

        return compilation.jit(in_scan(jax.value_and_grad(loss)))(images)

    assert_close(gradients(fast, ops.convolution), gradients(plain, plain_convolution))


def test_max_pool_gives_the_gradient_of_a_tie_to_the_first():
    gradient = jax.grad(lambda x: jnp.sum(ops.max_pool(x)))(jnp.zeros((1, 4, 4, 1)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        images = jax.random.normal(keys[0], (2, 8, 8, 4), jnp.float64)
        wide = jax.random.normal(keys[1], (3, 3, 4, 6), jnp.float64) / 3
        down = jax.random.normal(keys[2], (3, 3, 6, 4), jnp.float64) / 3
        point = jax.random.normal(keys[3], (1, 1, 6, 4), jnp.float64)
        one, none = ((1, 1), (1, 1)), ((0, 0), (0, 0))

        def network(x):
            hidden = ops.convolution_bias_relu(x, wide, jnp.full(6, 0.1), None, (1, 1), one)
            shortcut = ops.convolution(hidden, point, (2, 2), none)
            hidden = ops.convolution_bias_relu(hidden, down, jnp.zeros(4), shortcut, (2, 2), one)
            return jnp.sum(jnp.sin(ops.max_pool(hidden))) + jnp.sum(ops.average_pool(x) ** 2)

        direction = jax.random.normal(keys[4], images.shape, jnp.float64)
        slope = jnp.vdot(jax.grad(network)(images), direction)
        h = 1e-6
        difference = (network(images + h * direction) - network(images - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-7)


@pytest.mark.parametrize("loop", [lambda f: f, in_scan], ids=["plain", "scan"])
@pytest.mark.parametrize(
    ("stride", "height", "width"), [(1, 8, 7), (2, 8, 8), (2, 7, 9), (2, 8, 5)]
)
def test_depthwise_gradients_equal_plain(stride, height, width, loop):
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (3, height, width, 6))
    kernel = jax.random.normal(keys[1], (3, 3, 1, 6))
    shape = jax.eval_shape(lambda: plain_depthwise(images, kernel, (stride, stride))).shape
    cotangent = jax.random.normal(keys[2], shape)

    def gradients(function):
        def loss(x, w):
            return jnp.sum(jnp.sin(function(x, w, (stride, stride))) * cotangent)

        return compilation.jit(loop(jax.value_and_grad(loss, (0, 1))))(images, kernel)

    assert_close(gradients(ops.depthwise_convolution), gradients(plain_depthwise))

    def twice(function):  # around an attack, a gradient of the gradient is taken
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, kernel, (stride, stride)))))
        return jax.grad(lambda x: jnp.sum(inner(x) ** 2))(images)

    assert_close(twice(ops.depthwise_convolution), twice(plain_depthwise))


def test_depthwise_is_what_flax_asks_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        conv, "depthwise_convolution", lambda *a: asked.append(a) or plain_depthwise(*a)
    )
    images = jnp.ones((1, 8, 8, 4))
    for size, padding, features in ((3, 1, 4), (3, 0, 4), (5, 2, 4), (3, 1, 8)):
        pads = ((padding, padding), (padding, padding))
        options = {"feature_group_count": 4, "conv_general_dilated": ops.conv_general_dilated}
        layer = nn.Conv(features, (size, size), padding=pads, **options)
        layer.init(jax.random.key(0), images)
    assert len(asked) == 1  # the others are XLA's
    with pytest.raises(ValueError, match=r"`kernel` must have shape \(3, 3, 1, 4\)"):
        ops.depthwise_convolution(images, jnp.ones((3, 3, 1, 3)), (1, 1))


# oneDNN on networks whose blocks make up all the others.
LIBRARIES_AND_NETWORKS = [
    *(("xla", name) for name in models.MODELS),
    *(("onednn", name) for name in ("cnn", "resnet_small", "mobilenet_v1", "densenet121")),
]


@pytest.mark.parametrize(("library", "name"), LIBRARIES_AND_NETWORKS, indirect=["library"])
@pytest.mark.usefixtures("library")
def test_input_gradients_of_the_networks_equal_plain_ones(name, monkeypatch):
    network = models.create(name, **SMALL[name])
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)
    # Statistics of a trained network, so that folding them matters.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

    def gradients():
        loss = lambda x: jnp.sum(network.apply(variables, x) ** 2)  # noqa: E731
        return compilation.jit(in_scan(jax.value_and_grad(loss)))(images)

    fast = gradients()
    for operation, plain in {
        "convolution": plain_convolution,
        "convolution_bias_relu": plain_fused,
        "depthwise_convolution": plain_depthwise,
        "max_pool": plain_max_pool,
        "average_pool": plain_average_pool,
    }.items():
        monkeypatch.setattr(ops, operation, plain)
    assert_close(fast, gradients())


@pytest.mark.parametrize("pool", [ops.max_pool, ops.average_pool])
def test_pool_of_an_odd_size_is_an_error(pool):
    with pytest.raises(ValueError, match=r"even H and W, got shape \(1, 5, 4, 1\)"):
        pool(jnp.zeros((1, 5, 4, 1)))


def test_linen_hook_respects_layout_and_precision():
    images, kernel = jnp.ones((1, 4, 8, 8)), jnp.ones((3, 3, 4, 2))
    options = {"dimension_numbers": ("NCHW", "HWIO", "NCHW")}
    actual = ops.conv_general_dilated(images, kernel, (1, 1), "SAME", **options)
    expected = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", **options)
    np.testing.assert_array_equal(actual, expected)
    asked = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": lax.Precision.HIGHEST}
    text = str(
        jax.make_jaxpr(lambda x, w: ops.conv_general_dilated(x, w, (1, 1), "SAME", **asked))(
            jnp.ones((1, 8, 8, 4)), kernel
        )
    )
    assert "HIGHEST" in text


def test_linen_uses_the_fast_form():
    layer = nn.Conv(2, (3, 3), conv_general_dilated=ops.conv_general_dilated)
    images = jnp.ones((1, 8, 8, 4))
    variables = layer.init(jax.random.key(0), images)
    assert "custom_vjp" in str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(images))


def test_linen_hook_passes_other_convolutions_on():
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}
    actual = ops.conv_general_dilated(images, kernel, (1, 1), "SAME", **options)
    expected = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", **options)
    np.testing.assert_array_equal(actual, expected)
    same = ops.conv_general_dilated(images, jnp.ones((3, 3, 4, 2)), (2, 2), "SAME")
    expected = lax.conv_general_dilated(
        images, jnp.ones((3, 3, 4, 2)), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(same, expected)


def test_other_platforms_get_plain_operations(monkeypatch):
    """Lowered for a GPU, which takes none: the fast forms are for the CPU alone."""
    monkeypatch.delenv(
        "JAXROBUST_ONEDNN", raising=False
    )  # of `library`; what it calls is not exported
    jax.clear_caches()
    network = models.create("cnn", widths=(8, 8, 16, 16, 16))
    images = jnp.zeros((2, 16, 16, 3))
    variables = network.init(jax.random.key(0), images)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.apply(variables, x) ** 2)))

    def lowered(platform):
        return jax.export.export(gradient, platforms=[platform])(images).mlir_module()

    assert "select_and_scatter" in lowered("cuda")
    assert "select_and_scatter" not in lowered("cpu")
