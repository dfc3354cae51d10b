"""Maps of layers show evidence where it is in the image, whatever the network does to it before."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps_by_hand import by_hand, enlarged

from jaxrobust import attribution, defenses
from jaxrobust.attribution import METHODS, positions

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
LABELS = jnp.array([1, 3])
OF_LAYERS = sorted(name for name, method in METHODS.items() if method.needs_layer)
KERNEL = jnp.abs(jax.random.normal(jax.random.key(5), (3, 3, 3, 8)))
AGAIN = jnp.ones((3, 3, 8, 8)) / 72
NHWC = ("NHWC", "HWIO", "NHWC")
FOR_AND_AGAINST = jnp.stack([jnp.ones(8), -jnp.ones(8)], 1)


def convolved(x, kernel=KERNEL, stride=1, padding="SAME", **options):
    options = {"dimension_numbers": NHWC, **options}
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **options)


def averaged(x):
    return jax.nn.relu(x).mean((1, 2)) @ FOR_AND_AGAINST


def assert_drawn_there(function, size, places, within, layer=None, names=None):
    """A patch of two by two pixels is where the maps are largest."""
    for row, column in places:
        image = jnp.zeros((1, *size, 3)).at[0, row : row + 2, column : column + 2].set(1.0)
        for name in names or OF_LAYERS:
            heat = METHODS[name](None, function, image, jnp.array([0]), layer=layer)[0]
            peak = np.array(np.unravel_index(np.argmax(heat), size))
            assert float(heat.max()) > 0
            away = np.abs(peak - (row + 0.5, column + 0.5)).max()
            assert away <= within, (name, (row, column), peak)


def padded(mode, width, stride=1):
    pads = ((0, 0), (width, width), (width, width), (0, 0))

    def function(images):
        kernel = jnp.ones((2 * width + 1, 2 * width + 1, 3, 8)) * KERNEL[1, 1]
        wide = jnp.pad(images, pads, mode=mode)
        return averaged(convolved(wide, kernel, stride, "VALID"))

    return function


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_through_jpeg(size):
    inner = defenses.Preprocessed(lambda x: averaged(convolved(x)), defenses.JPEG(75))
    assert attribution.layers(inner, jnp.ones((1, *size, 3))).default is not None
    assert_drawn_there(inner, size, [(2, 2), (11, 9)], 4, names=["grad_cam"])


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize(("width", "stride"), [(1, 1), (3, 2)])
def test_borders_of_copies(mode, width, stride):
    function = padded(mode, width, stride)
    found = attribution.layers(function, jnp.ones((1, 15, 12, 3)))
    assert found.default is not None
    names = ["grad_cam", "score_cam"]
    assert_drawn_there(function, (15, 12), [(5, 6), (9, 4)], width + stride, names=names)


def chosen_by_images(x):
    return averaged(convolved(x)) * jax.lax.cond(x.mean() > 0.5, lambda: 1.0, lambda: 2.0)


def chosen_by_maps(x):
    y = convolved(x)
    return averaged(y) * jax.lax.cond(y.mean() > 0.5, lambda: jnp.ones(2), lambda: jnp.zeros(2) + 2)


def repeated_by_maps(x):
    y = convolved(x)
    until = 100 * y.mean()
    return averaged(y) * jax.lax.fori_loop(
        0, 1, lambda _, s: jax.lax.while_loop(lambda s: s < until, lambda s: 2 * s, s), 1.0
    )


def waiting_a_round(x):
    def body(carry, row):
        held, mean = carry
        return (jax.nn.sigmoid(mean) * held + 0.1, mean + row), None

    rows = convolved(x).swapaxes(0, 1).mean(2)
    begun = (jnp.zeros((len(x), 8)), jnp.zeros((len(x), 8)))
    (held, mean), _ = jax.lax.scan(body, begun, rows)
    return (held + mean) @ FOR_AND_AGAINST


def waiting_scalars(x):
    y = convolved(x)
    begun = (jnp.float32(0), jnp.float32(0), jnp.float32(1))

    def body(carry, _):
        return (carry[0] + y.mean(), carry[0] + carry[1], carry[1] + 1), None

    (*_, last), _ = jax.lax.scan(body, begun, None, length=3)
    return averaged(y * last)


@pytest.mark.parametrize(
    ("function", "default"),
    [
        (chosen_by_images, None),
        (chosen_by_maps, "convolved"),
        (repeated_by_maps, "convolved"),
        (waiting_a_round, "convolved"),
        (waiting_scalars, "convolved:relu"),
    ],
)
def test_what_depends_on_the_images_by_a_choice_or_earlier_rounds(function, default):
    assert attribution.layers(function, IMAGES).default == default
    found = attribution.eigen_cam(function, IMAGES, layer="convolved")
    assert float(found.max()) > 0


def test_kernels_that_are_summed_in_a_loop_are_weights():
    """What begins as zeros is weights from the second round on; literals go round too."""

    def function(images):
        def add(carry, _):
            total, kernel, _ = carry
            return (total + convolved(images, kernel), kernel + KERNEL, 1.0), None

        begun = (jnp.zeros((len(images), 16, 16, 8)), jnp.zeros(KERNEL.shape), 0.0)
        (total, *_), _ = jax.lax.scan(add, begun, None, length=3)
        return averaged(total)

    found = attribution.layers(function, IMAGES)
    assert found.default is not None and ":relu" in found.default
    assert all(layer.is_learned for layer in found if layer.view)


def test_maps_that_are_summed_in_a_loop_stay_maps():
    """What a loop begins with has no positions, what it makes has those of its rounds."""

    def function(images):
        kernels = jnp.stack([KERNEL, 2 * KERNEL])

        def add(total, kernel):
            return total + convolved(images, kernel), None

        total, _ = jax.lax.scan(add, jnp.zeros((len(images), 16, 16, 8)), kernels)
        return averaged(total)

    found = attribution.layers(function, IMAGES)
    assert [str(layer.view) for layer in found if layer.view] == ["16 x 16", "16 x 16"]
    assert_drawn_there(function, (16, 16), [(3, 9)], 2, layer="KERNEL:relu", names=["grad_cam"])


# Layers that do not cover the image evenly.


def several_without_padding(x):
    x = convolved(x, padding="VALID")
    for _ in range(3):
        x = jax.nn.relu(convolved(x, AGAIN, padding="VALID"))
    return averaged(x)


def one_sided(x):
    return averaged(convolved(jnp.pad(x, ((0, 0), (0, 16), (12, 0), (0, 0))), padding="VALID"))


UNEVEN = {
    "crop": (lambda x: averaged(convolved(x[:, 6:, 4:])), [(18, 10), (8, 6)], 2),
    "crop behind a stride": (
        lambda x: averaged(convolved(x, stride=2)[:, 4:, :6]),
        [(12, 3), (20, 8)],
        3,
    ),
    "without padding": (several_without_padding, [(5, 5), (17, 9)], 4.5),
    "padded at one side": (one_sided, [(2, 2), (19, 12), (21, 3)], 2),
    "padded before a padded convolution": (
        lambda x: averaged(convolved(jnp.pad(x, ((0, 0), (16, 0), (8, 3), (0, 0))))),
        [(2, 2), (19, 12)],
        2,
    ),
    "enlarged behind a stride": (
        lambda x: averaged(jax.image.resize(convolved(x, stride=4), (len(x), 24, 16, 8), "cubic")),
        [(2, 2), (18, 10)],
        3,
    ),
    "a hole": (
        lambda x: averaged(jnp.concatenate([(y := convolved(x))[:, :4], y[:, 16:]], 1)),
        [(18, 9), (1, 3)],
        2,
    ),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_maps_of_part_of_the_image_are_drawn_there(name):
    function, places, within = UNEVEN[name]
    assert ":relu" in attribution.layers(function, jnp.ones((1, 24, 16, 3))).default
    assert_drawn_there(function, (24, 16), places, within)


@pytest.mark.parametrize("size", [(16, 16), (23, 17), (15, 22)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_of_the_whole_image_are_resized(size, stride):
    """Bit for bit what `jax.image.resize` makes of them."""

    def function(x):
        return averaged(convolved(convolved(x, stride=stride), AGAIN, stride))

    images = jax.random.uniform(jax.random.key(3), (2, *size, 3))
    features = convolved(convolved(images, stride=stride), AGAIN, stride)
    expected = by_hand(averaged, features, LABELS % 2, features.shape[1:3])
    found = attribution.grad_cam(function, images, LABELS % 2, layer="AGAIN")
    np.testing.assert_allclose(found, enlarged(expected, size), rtol=1e-6, atol=1e-7)


def by_matrix(matrix):
    """The rows of images, summed up by a matrix that is computed on the spot."""
    return lambda x: averaged(convolved(jnp.einsum("bhwc,hk->bkwc", x, matrix())))


@pytest.mark.parametrize(
    ("matrix", "places"),
    [
        (lambda: jnp.eye(24)[:, 6:], [(8, 6), (18, 10)]),
        (lambda: jnp.repeat(jnp.eye(24), 2, 1), [(2, 3), (18, 10)]),
        (lambda: jnp.eye(24).reshape(24, 12, 2).mean(2), [(2, 3), (18, 10)]),
    ],
    ids=["crop", "twice the size", "half the size"],
)
def test_matrices_that_crop_or_resize(matrix, places):
    assert_drawn_there(by_matrix(matrix), (24, 16), places, 2, names=["grad_cam", "score_cam"])


@pytest.mark.parametrize(
    "matrix",
    [
        lambda: jnp.eye(24)[::-1],
        lambda: jnp.roll(jnp.eye(24), 7, 0),
        lambda: jnp.cos((2 * jnp.arange(24)[:, None] + 1) * jnp.arange(24) * jnp.pi / 48),
    ],
    ids=["flip", "roll", "cosines"],
)
def test_matrices_that_do_something_else_are_no_resize(matrix):
    function = by_matrix(matrix)
    assert attribution.layers(function, jnp.ones((1, 24, 16, 3))).default is None
    with pytest.raises(ValueError, match="is not a map of one image"):
        attribution.grad_cam(function, jnp.ones((1, 24, 16, 3)), layer="convolved")


# Evidence in the default layer.


def simple_transformer(read, patch=2, width=16):
    """Without normalisation, with weak attention: a token stays mostly what it is."""
    keys = jax.random.split(jax.random.key(1), 4)
    embed = jnp.abs(jax.random.normal(keys[0], (patch, patch, 3, width))) / 10
    attend = jax.random.normal(keys[1], (2, 3, width, width)) * 0.3
    wide = jax.random.normal(keys[2], (2, width, 2 * width)) * 0.02
    narrow = jax.random.normal(keys[3], (2, 2 * width, width)) * 0.02

    def function(x):
        x = convolved(x, embed, patch, "VALID").reshape(len(x), -1, width)
        x = jnp.concatenate([jnp.zeros((len(x), 1, width)), x], 1)
        for layer in range(2):
            query, key, value = (
                (x @ attend[layer, part]).reshape(len(x), -1, 4, width // 4) for part in range(3)
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 400
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), jnp.abs(value))
            x = x + mixed.reshape(x.shape)
            x = x + jax.nn.gelu(x @ wide[layer]) @ narrow[layer]
        return read(x) @ jnp.stack([jnp.ones(width), -jnp.ones(width)], 1)

    return function


def simple_resnet(x):
    x = jax.nn.relu(convolved(x, stride=2))
    x = jax.nn.relu(x + convolved(x, AGAIN))
    x = jax.nn.relu(convolved(x, AGAIN[1:2, 1:2], 2) + convolved(x, AGAIN, 2))
    return averaged(x)


def simple_vgg(x):
    def pool(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    x = pool(jax.nn.relu(convolved(x)))
    x = pool(jax.nn.relu(convolved(x, AGAIN)))
    return x.reshape(len(x), -1) @ jnp.tile(FOR_AND_AGAINST, (x.shape[1] * x.shape[2], 1))


def simple_windows(x):
    """Attention in shifted windows of four by four, its rows and columns halved behind."""
    x = convolved(x, KERNEL[:2, :2], 2, "VALID") / 10
    batch, height, width, channels = x.shape
    y = jnp.roll(x, (-2, -2), (1, 2)).reshape(batch, height // 4, 4, width // 4, 4, channels)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
    y = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", y, y) / 100) @ y
    y = y.reshape(batch, height // 4, width // 4, 4, 4, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x + jnp.roll(y.reshape(x.shape), (2, 2), (1, 2)) / 3
    parts = jnp.concatenate([x[:, i::2, j::2] for i in range(2) for j in range(2)], -1)
    return averaged(parts @ (jnp.tile(jnp.eye(8), (4, 1)) / 4))


EVIDENCE = {
    "class token": (simple_transformer(lambda x: x[:, 0]), (24, 16), 3),
    "mean of tokens": (simple_transformer(lambda x: x[:, 1:].mean(1)), (24, 16), 3),
    "residual": (simple_resnet, (24, 16), 4),
    "residual, odd": (simple_resnet, (23, 17), 4),
    "dense layers behind": (simple_vgg, (24, 16), 4),
    "dense layers behind, odd": (simple_vgg, (23, 19), 4),
    "windows": (simple_windows, (24, 16), 4),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence_is_drawn_where_it_is_by_the_default_layer(name):
    function, size, within = EVIDENCE[name]
    names = ["eigen_cam", "grad_cam", "layer_cam", "score_cam"]
    assert_drawn_there(function, size, [(2, 2), (18, 10)], within, names=names)


def test_two_rows_say_where_a_border_stands():
    """The smallest map that has a step: of one row nothing is known."""
    rows = np.array([1.0, 5.0])
    found = positions._at_indices(rows, 0, np.array([-1, 0, 1, 2]))
    np.testing.assert_array_equal(found, [-3, 1, 5, 9])
    assert positions._at_indices(rows[:1], 0, np.array([-1, 0])) is None
