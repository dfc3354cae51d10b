"""Every fast form against the plain one and against finite differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import SMALL

from jaxrobust import compilation, models, ops, programs
from jaxrobust.ops import Pool, Window, depthwise

ONE, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
CONVOLUTIONS = {
    # rows and columns of the kernel, C_in, C_out, window, height and width
    "few channels": ((3, 3), 3, 8, Window(padding=ONE), (8, 8)),
    "padded": ((3, 3), 8, 16, Window(padding=ONE), (8, 8)),
    "five": ((5, 5), 8, 4, Window(padding=((2, 2), (2, 2))), (8, 8)),
    "valid": ((3, 3), 8, 4, Window(), (8, 8)),
    "one-sided": ((3, 2), 8, 4, Window(padding=((0, 2), (1, 0))), (7, 6)),
    "cut": ((3, 3), 8, 4, Window(padding=((-1, 2), (0, -1))), (9, 8)),
    "stride 2": ((3, 3), 8, 16, Window((2, 2), ONE), (8, 8)),
    "stride 2, odd": ((3, 3), 8, 16, Window((2, 2), ONE), (7, 9)),
    "stride 2, same": ((3, 3), 8, 16, Window((2, 2), ((0, 1), (0, 1))), (8, 8)),
    "stem": ((7, 7), 3, 8, Window((2, 2), ((3, 3), (3, 3))), (12, 15)),
    "stem, cut": ((3, 4), 3, 8, Window((2, 3), ((-1, 2), (1, -2))), (11, 12)),
    "stem, a side": ((5, 3), 3, 8, Window((1, 2), ((2, 1), (0, 2))), (9, 8)),
    "stem with gaps": ((2, 3), 1, 8, Window((5, 4), ((1, 0), (1, 1))), (14, 10)),
    "patches": ((4, 4), 3, 8, Window((4, 4)), (12, 12)),
    "patches with a rest": ((2, 3), 8, 4, Window((2, 3)), (9, 8)),
    "strides 3 and 1": ((2, 3), 8, 4, Window((3, 1), ((1, 0), (1, 1))), (10, 8)),
    "dilated": ((3, 3), 8, 4, Window(padding=((2, 2), (4, 3)), dilation=(2, 3)), (9, 9)),
    "dilated, stride 2": ((3, 3), 8, 4, Window((2, 2), ONE, (2, 2)), (9, 9)),
    "pointwise": ((1, 1), 8, 16, Window(), (8, 8)),
    "pointwise, stride 2": ((1, 1), 8, 16, Window((2, 2)), (8, 8)),
    "pointwise, stride 2, odd": ((1, 1), 8, 16, Window((2, 2)), (7, 7)),
    # From here on few positions: a matrix product for each.
    "2x2": ((3, 3), 8, 16, Window(padding=ONE), (2, 2)),
    "1x1": ((3, 3), 8, 16, Window(padding=ONE), (1, 1)),
    "five on 2x2": ((5, 5), 8, 4, Window(padding=((2, 2), (2, 2))), (2, 2)),
    "2x2 of 4x4": ((3, 3), 8, 4, Window(), (4, 4)),
}


ACTIVATIONS = {None: lambda x: x, "relu": jax.nn.relu, "relu6": jax.nn.relu6}


def plain_convolution(
    images, kernel, window, bias=None, residual=None, *, activation=None, groups=1
):
    outputs = lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    for addend in (bias, residual):
        outputs = outputs if addend is None else outputs + addend
    return ACTIVATIONS[activation](outputs)


def plain_depthwise(images, kernel, window):
    return plain_convolution(images, kernel, window, groups=images.shape[-1])


def plain_pool(operation, start, images, pool):
    shape, strides = (1, *pool.size, 1), (1, *pool.strides, 1)
    padding = ((0, 0), *pool.padding, (0, 0))
    return lax.reduce_window(images, start, operation, shape, strides, padding)


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


def convolution_case(name):
    taps, inputs, outputs, window, size = CONVOLUTIONS[name]
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(keys[0], (3, *size, inputs))
    kernel = jax.random.normal(keys[1], (*taps, inputs, outputs)) / taps[0]
    shape = jax.eval_shape(lambda: plain_convolution(images, kernel, window)).shape
    return images, kernel, window, jax.random.normal(keys[2], shape), keys[3]


@pytest.fixture(scope="module", params=["xla", "onednn"])  # caches are cleared twice, not 40 times
def library(request):
    """What computes the convolutions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXROBUST_ONEDNN", str(int(request.param == "onednn")))
        if request.param == "onednn" and not compilation.onednn_types():
            pytest.skip("oneDNN does not work here")
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


def test_onednn_is_used_where_asked(library):
    images, kernel, window, _, _ = convolution_case("padded")
    program = jax.jit(lambda x, w: ops.convolution(x, w, window)).lower(images, kernel)
    assert ("onednn" in program.as_text()) == (library == "onednn")
    narrow = jax.jit(lambda x, w: ops.convolution(x, w, window)).lower(
        images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    )
    expected = library == "onednn" and "bfloat16" in compilation.onednn_types()
    assert ("onednn" in narrow.as_text()) == expected
    # Types that it does not have, no images at all, and images that the kernel does not fit into.
    for other in (images.astype(jnp.float16), images[:0], images[:, :1]):
        fitting = window if other.shape[1] == 8 else Window()
        outputs = ops.convolution(other, kernel.astype(other.dtype), fitting)
        expected = plain_convolution(other, kernel.astype(other.dtype), fitting)
        assert outputs.shape == expected.shape


def test_convolutions_of_bfloat16_and_under_vmap(library):
    images, kernel, window, _, key = convolution_case("padded")
    small, coarse = images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    expected = plain_convolution(*(x.astype(jnp.float32) for x in (small, coarse)), window)
    actual = ops.convolution(small, coarse, window)
    assert actual.dtype == jnp.bfloat16
    assert_close(actual.astype(jnp.float32), expected, tolerance=1e-2)
    kernels = jax.random.normal(key, (2, *kernel.shape))
    stacked = jax.vmap(lambda w: ops.convolution(images, w, window))(kernels)
    assert_close(stacked[1], plain_convolution(images, kernels[1], window))


@pytest.mark.parametrize("loop", [lambda f: f, in_scan], ids=["plain", "scan"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.usefixtures("library")
def test_convolution_gradients_equal_plain(name, loop):
    images, kernel, window, cotangent, _ = convolution_case(name)

    def gradients(function):
        def loss(x, w):
            return jnp.sum(function(x, w, window) * cotangent)

        return compilation.jit(loop(jax.value_and_grad(loss, (0, 1))))(images, kernel)

    assert_close(gradients(ops.convolution), gradients(plain_convolution))


@pytest.mark.parametrize("name", ["padded", "stem", "stride 2", "patches"])
@pytest.mark.usefixtures("library")
def test_gradients_of_convolution_gradients_equal_plain(name):
    images, kernel, window, cotangent, _ = convolution_case(name)

    def gradients(function):
        def size(x, w):
            slope = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, w, window)) * cotangent))(x)
            return jnp.mean(jnp.square(slope))

        return compilation.jit(jax.grad(size, (0, 1)))(images, kernel)

    assert_close(gradients(ops.convolution), gradients(plain_convolution))


@pytest.mark.parametrize("name", ["padded", "stride 2", "stem"])
@pytest.mark.usefixtures("library")
def test_a_loop_copies_kernels_once(name):
    images, kernel, window, *_ = convolution_case(name)
    images = jnp.tile(images, (2, 1, 1, 1))[:5]  # no axis of a kernel begins with 5

    def step(x, w):
        return x - jax.grad(lambda x: jnp.sum(jnp.sin(ops.convolution(x, w, window))))(x)

    def steps(x, w):
        return lax.scan(lambda x, _: (step(x, w), None), x, length=3)[0]

    text = compilation.jit(steps).lower(images, kernel).compile().as_text()
    (name,) = set(re.findall(r"body=(%[\w.-]+)", text))
    body = text.split(f"\n{name} (")[1].split("\n}")[0]
    made = re.findall(r"= f32\[(\d+),\S+ ([\w-]+)\(", body)
    assert any(first == "5" for first, _ in made)
    # A bitcast is no copy, and a product of matrices has its rows of all images.
    others = {what for first, what in made if first != "5"}
    assert others <= {"get-tuple-element", "bitcast", "dot"}, body


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["few channels", "padded", "stride 2", "2x2"])
@pytest.mark.usefixtures("library")
def test_what_follows_a_convolution_equals_plain(name, residual, activation):
    images, kernel, window, cotangent, key = convolution_case(name)
    bias = jax.random.normal(key, kernel.shape[-1:])
    added = jax.random.normal(jax.random.key(9), cotangent.shape) if residual else None

    def gradients(function):
        def loss(x, w, b, r):
            outputs = function(x, w, window, bias=b, residual=r, activation=activation)
            return jnp.sum(outputs * cotangent)

        return compilation.jit(in_scan(jax.value_and_grad(loss, (0, 1, 2, 3))))(
            images, kernel, bias, added
        )

    assert_close(gradients(ops.convolution), gradients(plain_convolution))


def test_wrong_arguments_are_named():
    images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match="`activation` must be"):
        ops.depthwise_convolution(images, kernel, Window(), activation="gelu")
    with pytest.raises(ValueError, match="`activation` must be"):
        ops.convolution(images, jnp.ones((3, 3, 2, 2)), activation="gelu")
    with pytest.raises(ValueError, match=r"`kernel` must be \[rows, columns, 1, C\] with C = 2"):
        ops.depthwise_convolution(images, jnp.ones((3, 3, 2, 1)), Window())


def test_relu_has_no_slope_at_zero():
    slope = jax.grad(
        lambda x: jnp.sum(ops.convolution(x, jnp.ones((1, 1, 1, 1)), Window(), activation="relu"))
    )
    np.testing.assert_array_equal(slope(jnp.zeros((1, 2, 2, 1))), np.zeros((1, 2, 2, 1)))


@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (2, 4)])
@pytest.mark.parametrize("taps", [(3, 3), (2, 2), (1, 1), (4, 5)])
@pytest.mark.usefixtures("library")
def test_transposed_convolutions_equal_plain(taps, factors):
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (2, 4, 5, 8))
    kernel = jax.random.normal(keys[1], (*taps, 8, 6))

    def plain(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            ((2, 1), (1, 3)),
            lhs_dilation=factors,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    size = jax.eval_shape(plain, images, kernel).shape[1:3]

    def fast(images, kernel):
        return ops.transposed_convolution(images, kernel, factors, (2, 1), size)

    def gradients(function):
        loss = lambda x, w: jnp.sum(jnp.sin(function(x, w)))  # noqa: E731
        return compilation.jit(in_scan(jax.value_and_grad(loss, (0, 1))))(images, kernel)

    assert_close(fast(images, kernel), plain(images, kernel))
    assert_close(gradients(fast), gradients(plain))


POOLS = {
    "halves": Pool((2, 2), (2, 2)),
    "halves with a rest": Pool((2, 3), (2, 3)),
    "overlapping": Pool((3, 3), (2, 2), ((1, 1), (1, 1))),
    "one-sided": Pool((3, 2), (2, 2), ((0, 1), (1, 0))),
    "every pixel": Pool((3, 3), (1, 1), ((1, 1), (1, 1))),
    "gaps": Pool((1, 2), (2, 3)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_pool_behind_a_convolution_equals_plain(kind, name):
    # Behind a convolution and inside a loop: where a reshape view gave false gradients.
    images, kernel, window, _, key = convolution_case("padded")
    pool = POOLS[name]
    fast = ops.max_pool if kind == "max" else ops.sum_pool
    operation, start = (lax.max, -jnp.inf) if kind == "max" else (lax.add, 0.0)

    def plain(images, pool):
        return plain_pool(operation, start, images, pool)

    shape = jax.eval_shape(lambda: plain(jnp.zeros((3, 8, 8, 16)), pool)).shape
    weights = jax.random.normal(key, shape)

    def gradients(pooling, convolution):
        def loss(x):
            return jnp.sum(pooling(convolution(x, kernel, window), pool) * weights)

        return compilation.jit(in_scan(jax.value_and_grad(loss)))(images)

    assert_close(gradients(fast, ops.convolution), gradients(plain, plain_convolution))


@pytest.mark.parametrize("name", POOLS)
def test_max_pool_gives_the_gradient_of_a_tie_to_the_first(name):
    pool = POOLS[name]
    zeros = jnp.zeros((1, 8, 8, 1))
    gradient = jax.grad(lambda x: jnp.sum(ops.max_pool(x, pool)))(zeros)
    plain = jax.grad(lambda x: jnp.sum(plain_pool(lax.max, -jnp.inf, x, pool)))(zeros)
    np.testing.assert_array_equal(gradient, plain)


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        images = jax.random.normal(keys[0], (2, 8, 8, 4), jnp.float64)
        wide = jax.random.normal(keys[1], (3, 3, 4, 6), jnp.float64) / 3
        down = jax.random.normal(keys[2], (3, 3, 6, 4), jnp.float64) / 3
        point = jax.random.normal(keys[3], (1, 1, 6, 4), jnp.float64)
        halves, by_two = Pool((2, 2), (2, 2)), Window((2, 2), ONE)

        def network(x):
            bias = jnp.full(6, 0.1)
            hidden = ops.convolution(x, wide, Window(padding=ONE), bias=bias, activation="relu")
            shortcut = ops.convolution(hidden, point, Window((2, 2)))
            hidden = ops.convolution(hidden, down, by_two, residual=shortcut, activation="relu")
            pooled = ops.max_pool(hidden, halves)
            return jnp.sum(jnp.sin(pooled)) + jnp.sum(ops.sum_pool(x, halves) ** 2)

        direction = jax.random.normal(keys[4], images.shape, jnp.float64)
        slope = jnp.vdot(jax.grad(network)(images), direction)
        h = 1e-6
        difference = (network(images + h * direction) - network(images - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-7)


DEPTHWISE = {
    "stride 1": ((3, 3), Window(padding=ONE), (8, 7)),
    "stride 2": ((3, 3), Window((2, 2), ONE), (8, 8)),
    "stride 2, odd": ((3, 3), Window((2, 2), ONE), (7, 9)),
    "stride 2, same": ((3, 3), Window((2, 2), ((0, 1), (0, 1))), (8, 9)),
    "five": ((5, 4), Window((1, 2), ((2, 2), (1, 2))), (9, 8)),
    "dilated": ((3, 3), Window(padding=((2, 2), (2, 2)), dilation=(2, 2)), (9, 8)),
    "valid": ((3, 2), Window(), (6, 6)),
    "cropped": ((3, 3), Window(padding=((-1, 0), (1, -1))), (8, 9)),
}


@pytest.mark.parametrize(
    ("loop", "large"),
    [(lambda f: f, depthwise._LARGE), (in_scan, depthwise._LARGE), (in_scan, 0)],
    ids=["plain", "scan", "rows"],
)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_gradients_equal_plain(name, loop, large, monkeypatch):
    monkeypatch.setattr(depthwise, "_LARGE", large)
    taps, window, size = DEPTHWISE[name]
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (3, *size, 6))
    kernel = jax.random.normal(keys[1], (*taps, 1, 6))
    shape = jax.eval_shape(lambda: plain_depthwise(images, kernel, window)).shape
    cotangent = jax.random.normal(keys[2], shape)

    def gradients(function):
        def loss(x, w):
            return jnp.sum(jnp.sin(function(x, w, window)) * cotangent)

        return compilation.jit(loop(jax.value_and_grad(loss, (0, 1))))(images, kernel)

    assert_close(gradients(ops.depthwise_convolution), gradients(plain_depthwise))


@pytest.mark.parametrize("function", ["convolution", "depthwise"])
def test_a_gradient_of_the_gradient(function):
    """As around an attack."""
    images, kernel, window, _, _ = convolution_case("padded")
    fast, plain = ops.convolution, plain_convolution
    if function == "depthwise":
        fast, plain, kernel = ops.depthwise_convolution, plain_depthwise, kernel[:, :, :1, :8]

    def twice(function):
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, kernel, window))))
        return jax.grad(lambda x: jnp.sum(inner(x) ** 2))(images)

    assert_close(twice(fast), twice(plain))


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
    function = programs.as_argument(models.Classifier(network.apply, variables), images)

    def gradients():
        loss = lambda x: jnp.sum(function(x) ** 2)  # noqa: E731
        return compilation.jit(in_scan(jax.value_and_grad(loss)))(images)

    fast = gradients()
    monkeypatch.setenv("JAXROBUST_PLAIN", "1")
    assert_close(fast, gradients())
