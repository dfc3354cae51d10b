"""Programs by their fast forms against plain evaluation, on networks that nobody wrote for them."""

import os
from collections import Counter

import blocks
import frameworks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from test_not_silent import STRICT

from jaxrobust import attacks, certificates, compilation, evaluation, models, ops, programs
from jaxrobust.programs import guarding, tracing

IMAGES = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
LABELS = np.array([0, 1, 2, 3])
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def no_other_library(monkeypatch):
    monkeypatch.setenv("JAXROBUST_ONEDNN", "0")


def values_and_gradients(program, images, *, in_scan=False):
    def both(images):
        def loss(images):
            logits = program(images).astype(jnp.float32)
            return jnp.sum(jax.nn.log_softmax(logits)[:, 0]), logits

        gradient, logits = jax.grad(loss, has_aux=True)(images)
        return logits, gradient

    if in_scan:  # where XLA lays data out differently

        def looped(images):
            step = lambda carry, _: (both(images), None)  # noqa: E731
            return lax.scan(step, both(images), length=2)[0]

        return compilation.jit(looped)(images)
    return compilation.jit(both)(images)


def by_both(function, images, monkeypatch, **options):
    """(by the fast forms, plain); what is traced anew."""
    program = programs.as_argument(function, images)
    fast = values_and_gradients(program, images, **options)
    monkeypatch.setenv("JAXROBUST_PLAIN", "1")
    return fast, values_and_gradients(program, images, **options)


def assert_close(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


BODIES = frameworks.LINEN | blocks.BLOCKS
ZOO = {f"zoo {name}": name for name in models.MODELS}


def network(name, kind=jnp.float32):
    if name in BODIES:
        return frameworks.of_layers(BODIES[name], IMAGES, None if kind == jnp.float32 else kind)
    if name in ZOO:
        return of_the_zoo(ZOO[name], kind)
    variables = frameworks.linen_variables(IMAGES)
    if kind == jnp.bfloat16:
        return frameworks.linen(variables, kind)
    variables = jax.tree.map(lambda leaf: leaf.astype(kind), variables)
    return {
        "linen": lambda: frameworks.linen(variables),
        "plain": lambda: frameworks.plain(variables),
        "nnx": lambda: frameworks.in_nnx(variables),
        "equinox": lambda: frameworks.in_equinox(variables),
        "equinox pools": frameworks.equinox_pools,
    }[name]()


def of_the_zoo(name, kind):
    module = models.create(name)
    image = jnp.zeros((1, 32, 32, 3))
    variables = frameworks.perturbed(jax.jit(module.init)(jax.random.key(0), image))
    variables = jax.tree.map(lambda leaf: leaf.astype(kind), variables)

    def apply(variables, images):
        images = jnp.tile(images, (1, 2, 2, 1))  # 32 pixels
        return module.apply(variables, images.astype(kind))

    return jax.tree_util.Partial(apply, variables)


FRAMEWORKS = ["linen", "plain", "nnx", "equinox"]
NAMES = [*FRAMEWORKS, "equinox pools", *BODIES, *ZOO]


def test_there_are_many_networks():
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_equal_plain(name, monkeypatch):
    # In float64 no ReLU and no maximum lies on the other side because of rounding.
    with jax.enable_x64(True):
        images = jnp.asarray(IMAGES, jnp.float64)
        fast, plain = by_both(network(name, jnp.float64), images, monkeypatch)
    assert_close(fast, plain, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_values_in_float32(name, monkeypatch):
    (fast, _), (plain, _) = by_both(network(name), jnp.asarray(IMAGES), monkeypatch, in_scan=True)
    assert_close([fast], [plain], 1e-5)


def test_one_network_in_four_frameworks_is_one_function():
    logits = [evaluation.logits(network(name), IMAGES, 4) for name in FRAMEWORKS]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5)
    bounds = [certificates.ibp_bounds(network(name), IMAGES[:2], 1e-3) for name in FRAMEWORKS]
    for other in bounds[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), other, bounds[0])


def primitives(function, images=IMAGES):
    program = programs.as_argument(function, images)
    jaxpr = jax.make_jaxpr(lambda images: program(images))(images)
    return Counter(equation.primitive.name for equation in jaxpr.jaxpr.eqns)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_norm_residual_and_relu_are_part_of_the_convolutions(name):
    found = primitives(network(name))
    assert found["custom_vjp_call"] == 6
    assert not {"conv_general_dilated", "custom_jvp_call", "max"} & set(found)
    pixels = [  # nothing else is computed for each pixel
        name for name in ("mul", "add", "sub", "div") if found[name] > 40
    ]
    assert not pixels


def test_transpositions_of_images_are_gone():
    program = programs.as_argument(network("equinox"), IMAGES)
    jaxpr = jax.make_jaxpr(lambda images: program(images))(IMAGES)
    shapes = [
        equation.invars[0].aval.shape
        for equation in jaxpr.jaxpr.eqns
        if equation.primitive.name == "transpose" and len(equation.invars[0].aval.shape) == 4
    ]
    pixels = [shape for shape in shapes if shape[0] == len(IMAGES) and 3 not in shape]
    assert (
        len(shapes) > 6 and not pixels
    )  # kernels, and the image itself: into the network's layout


def test_relu_at_zero_and_maximum_at_zero_keep_their_slopes():
    kernel = jnp.ones((1, 1, 3, 2))
    numbers = ("NHWC", "HWIO", "NHWC")

    def slope(activation):
        def function(images):
            outputs = lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=numbers
            )
            return activation(outputs).sum((1, 2))

        program = programs.as_argument(function, IMAGES)
        return jax.grad(lambda images: program(images)[:, 0].sum())(jnp.zeros_like(IMAGES))

    assert float(slope(jax.nn.relu).max()) == 0
    assert float(slope(lambda x: jnp.maximum(x, 0)).max()) == 0.5


def test_a_rule_of_the_users_behind_a_convolution_stays(monkeypatch):
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, 5)), jnp.float32)

    def function(images):
        numbers = ("NHWC", "HWIO", "NHWC")
        outputs = lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        return rounded(outputs).mean((1, 2))

    fast, plain = by_both(function, jnp.asarray(IMAGES), monkeypatch)
    assert float(jnp.abs(fast[1]).max()) > 0
    assert_close(fast, plain, 1e-5)


@pytest.mark.parametrize("kind", ["scan", "while", "cond", "checkpoint", "platform"])
def test_what_is_inside_is_fast_too(kind, monkeypatch):
    kernel = 0.1 * jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, 3)), jnp.float32)

    def layer(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(x + 0.1)

    def function(images):
        if kind == "scan":
            found = lax.scan(lambda x, _: (layer(x), None), images, length=3)[0]
        elif kind == "while":
            found = lax.fori_loop(0, 3, lambda _, x: layer(x), images)
        elif kind == "cond":
            found = lax.cond(images.sum() > 0, layer, lambda x: x, images)
        elif kind == "checkpoint":
            found = jax.checkpoint(layer)(images)
        else:
            found = lax.platform_dependent(images, cpu=layer, default=lambda x: x)
        return found.mean((1, 2))

    program = programs.as_argument(function, IMAGES)
    text = str(jax.make_jaxpr(lambda images: program(images))(IMAGES))
    assert "custom_vjp_call" in text
    fast, plain = by_both(function, jnp.asarray(IMAGES), monkeypatch)
    assert_close(fast, plain, 1e-5)


@pytest.mark.parametrize("name", ["linen", *BODIES, *ZOO])
def test_bfloat16_is_as_exact_as_plain(name, monkeypatch):
    images = jnp.asarray(np.random.default_rng(1).random((16, 16, 16, 3), np.float32))
    exact, _ = by_both(network(name), images, monkeypatch)[1]
    monkeypatch.setenv("JAXROBUST_PLAIN", "0")
    answers = by_both(network(name, jnp.bfloat16), images, monkeypatch)
    fast, plain = (float(jnp.sqrt(jnp.mean((logits - exact) ** 2))) for logits, _ in answers)
    assert 0 < fast <= 1.5 * plain


def test_attacks_find_the_same(monkeypatch):
    function = network("nnx")
    labels = evaluation.logits(function, IMAGES, 4).argmax(1)
    attack = attacks.PGD(0.03, 0.01, 5)
    fast = attack(KEY, function, IMAGES, labels)
    monkeypatch.setenv("JAXROBUST_PLAIN", "1")
    jax.clear_caches()
    plain = attack(KEY, function, IMAGES, labels)
    np.testing.assert_array_equal(fast.success, plain.success)


def convolve(images, kernel, padding="SAME", strides=(1, 1)):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=numbers)


KERNEL = jnp.asarray(np.random.default_rng(3).standard_normal((3, 3, 3, 4)), jnp.float32)
WHOLE = jnp.asarray(np.random.default_rng(3).standard_normal((16, 16, 3, 4)), jnp.float32)
UNUSUAL = {
    "order of Fortran": lambda x: convolve(x, WHOLE, "VALID").reshape((4, 4), order="F"),
    "counts in int8": lambda x: (
        jnp.sum((convolve(x, KERNEL) > 0).astype(jnp.int8), axis=(1, 2), dtype=jnp.int8)
        * jnp.int8(2)
    ),
    "a window in the padding": lambda x: convolve(
        x[:, :2], KERNEL[:2], ((3, -3), (0, 0)), (1, 8)
    ).sum((1, 2)),
    "a scalar": lambda x: jnp.where(
        x.sum() > 0, jnp.squeeze(convolve(x[:1], WHOLE[..., :1], "VALID")), 0.0
    ),
    "an empty pooling": lambda x: lax.reduce_window(
        convolve(x, KERNEL)[:, :3, :3], -jnp.inf, lax.max, (1, 4, 4, 1), (1, 2, 2, 1), "VALID"
    ),
    "no images": lambda x: convolve(x, KERNEL)[:0].max((1, 2)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_functions_equal_plain(name, monkeypatch):
    program = programs.trace(UNUSUAL[name], jnp.asarray(IMAGES))
    fast = jax.jit(lambda images: program(images))(IMAGES)
    monkeypatch.setenv("JAXROBUST_PLAIN", "1")
    plain = jax.jit(lambda images: program(images))(IMAGES)
    assert fast.dtype == plain.dtype and fast.shape == plain.shape
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", STRICT)
@pytest.mark.parametrize("name", ["linen", "mobilenet_v2", "vgg"])
def test_forms_under_strict_settings(name, setting):
    function, attack = network(name), attacks.FGSM(0.01)
    labels = evaluation.logits(function, IMAGES, 4).argmax(1)
    expected = attack(KEY, function, IMAGES, labels)
    option, value = STRICT[setting]
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        found = attack(KEY, function, IMAGES, labels)
    finally:
        jax.config.update(option, before)
    np.testing.assert_array_equal(found.success, expected.success)


def test_plain_is_asked_for_by_its_name(monkeypatch):
    monkeypatch.setenv("JAXROBUST_PLAIN", "yes")
    with pytest.raises(ValueError, match=r"`JAXROBUST_PLAIN` must be one of"):
        compilation.has_fast_forms()


@st.composite
def windows(draw):
    """A convolution of any layout, window and grouping."""
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    taps, strides, factors = draw(pair(1, 4)), draw(pair(1, 3)), draw(pair(1, 2))
    dilation = draw(pair(1, 2))
    inputs, outputs, groups = draw(st.sampled_from([(3, 4, 1), (4, 4, 4), (4, 8, 4), (6, 4, 2)]))
    return {
        "layout": draw(st.sampled_from(["NHWC", "NCHW", "HWNC", "CNHW"])),
        "kernel_layout": draw(st.sampled_from(["HWIO", "OIHW", "IOHW"])),
        "taps": taps,
        "sides": draw(pair(5, 9)),
        "inputs": inputs,
        "outputs": outputs,
        "options": {
            "window_strides": strides,
            "padding": draw(st.tuples(pair(0, 2), pair(0, 2))),
            "lhs_dilation": factors,
            "rhs_dilation": dilation,
            "feature_group_count": groups,
        },
    }


def test_any_convolution_equals_plain(monkeypatch):
    examples = 12 if os.environ.get("JAXROBUST_FEW_EXAMPLES", "1") == "1" else 200

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(windows())
    def check(drawn):
        random = np.random.default_rng(0)
        layout, options = drawn["layout"], drawn["options"]
        of_images = {"N": 2, "C": drawn["inputs"], "H": drawn["sides"][0], "W": drawn["sides"][1]}
        of_kernel = {
            "H": drawn["taps"][0],
            "W": drawn["taps"][1],
            "I": drawn["inputs"] // options["feature_group_count"],
            "O": drawn["outputs"],
        }
        images = random.standard_normal([of_images[axis] for axis in layout])
        kernel = random.standard_normal([of_kernel[axis] for axis in drawn["kernel_layout"]])
        numbers = (layout, drawn["kernel_layout"], layout)
        axes = tuple(layout.index(axis) for axis in "NC")

        def function(images, kernel):
            found = lax.conv_general_dilated(images, kernel, dimension_numbers=numbers, **options)
            channels = [1] * 4
            channels[layout.index("C")] = -1
            scale = 1 + jnp.arange(drawn["outputs"], dtype=found.dtype)
            found = jax.nn.relu(found * scale.reshape(channels) - 0.3)
            return jnp.transpose(found, (*axes, *(i for i in range(4) if i not in axes)))

        with jax.enable_x64(True):
            images, kernel = jnp.asarray(images, jnp.float64), jnp.asarray(kernel, jnp.float64)
            program = programs.trace(function, images, kernel)

            def both(*arguments):
                loss = lambda *arguments: jnp.sum(jnp.sin(program(*arguments)))  # noqa: E731
                return program(*arguments), *jax.grad(loss, (0, 1))(*arguments)

            monkeypatch.setenv("JAXROBUST_PLAIN", "0")
            fast = jax.jit(both)(images, kernel)
            monkeypatch.setenv("JAXROBUST_PLAIN", "1")
            plain = jax.jit(lambda *arguments: both(*arguments))(images, kernel)
            for a, b in zip(fast, plain, strict=True):
                if b.size:
                    np.testing.assert_allclose(a, b, atol=1e-10 * max(1, float(jnp.abs(b).max())))

    check()


def test_a_wrong_form_is_noticed_and_not_used(monkeypatch):
    """A fault of the forms, or of the compiler: the figures are those of plain evaluation."""
    function = frameworks.of_layers(frameworks.vgg, IMAGES)
    monkeypatch.setenv("JAXROBUST_PLAIN", "1")
    expected = evaluation.logits(function, IMAGES, 4)
    labels = expected.argmax(1)
    monkeypatch.setenv("JAXROBUST_PLAIN", "0")
    jax.clear_caches()
    right = ops.max_pool
    monkeypatch.setattr(
        ops,
        "max_pool",
        lambda images, pool: right(images, pool) + images.mean((1, 2, 3), keepdims=True),
    )
    known, distrusted = dict(guarding._known), set(tracing._distrusted)
    guarding._known.clear()
    try:
        with pytest.warns(UserWarning, match="fast forms .* evaluated without them"):
            report = evaluation.attack_dataset(
                attacks.FGSM(0.01),
                function,
                IMAGES,
                labels,
                key=KEY,
                execution=evaluation.Execution(num_lanes=4),
            )
        np.testing.assert_allclose(report.clean_logits, expected, atol=1e-5)
        assert "without them" in report.warnings[0]
        result = attacks.FGSM(0.01)(KEY, function, IMAGES, labels)
        np.testing.assert_array_equal(result.success, report.success)
    finally:
        guarding._known.clear()
        guarding._known.update(known)
        tracing._distrusted.clear()
        tracing._distrusted.update(distrusted)


def test_a_nan_on_one_side_is_a_difference():
    nan, far = np.float32(np.nan), np.float32(np.inf)
    rows = np.array([[1.0, 2.0], [nan, 2.0], [far, 2.0]], np.float32)
    np.testing.assert_array_equal(guarding._distances(rows, rows), 0)
    assert not np.any(guarding._distances(rows, rows[[1, 0, 0]]) <= 1)
