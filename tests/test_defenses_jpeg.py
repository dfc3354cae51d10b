"""JPEG against Pillow, its transform against scipy, and its straight-through gradient."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

from jaxrobust.defenses import JPEG, jpeg, jpeg_codec

SHAPE = (3, 18, 17, 3)
PILLOW = {"4:4:4": 0, "4:2:0": 2}


def landscape(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Something like a photograph, uint8: a smooth scene, two edges, a saturated sky, grain."""
    y, x = np.mgrid[:height, :width] / 32
    scene = np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(x * y)], axis=-1) * 70 + 120
    scene[: height // 3] = [140, 190, 255]
    scene[:, width // 2 : width // 2 + 3] = [250, 20, 10]
    grain = np.random.default_rng(0).normal(0, 4, scene.shape)
    return np.clip(scene + grain, 0, 255).astype(np.uint8)[..., :channels]


def through_pillow(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(file, "JPEG", quality=quality, subsampling=PILLOW[subsampling])
    return np.asarray(Image.open(file), np.float64).reshape(image.shape)


def through_ours(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    images = jnp.asarray(image[None], jnp.float32) / 255
    return np.asarray(jpeg(images, quality, subsampling))[0] * 255.0


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [10, 50, 75])
# 50 = 3 * 16 + 2: there the chroma's edge is continued before it is averaged; 4: no triangle filter.
@pytest.mark.parametrize("shape", [(37, 50), (3, 4), (1, 1)])
def test_is_pillows(shape, quality, subsampling):
    image = landscape(*shape)
    difference = np.abs(
        through_ours(image, quality, subsampling) - through_pillow(image, quality, subsampling)
    )
    assert difference.mean() < 0.6
    assert difference.max() <= 20


def test_is_pillows_on_photographs(reference):
    differences = {
        (quality, subsampling): np.mean(
            [
                np.abs(
                    through_ours(i, quality, subsampling) - through_pillow(i, quality, subsampling)
                )
                for i in reference["images"][:12]
            ]
        )
        for quality in (50, 75)
        for subsampling in PILLOW
    }
    assert max(differences.values()) < 0.8, differences


def test_chroma_matters_to_the_comparison():
    """The other subsampling is much further from Pillow than ours is: the test above can fail."""
    image = landscape(37, 50)
    wrong = np.abs(through_ours(image, 75, "4:4:4") - through_pillow(image, 75, "4:2:0"))
    assert wrong.mean() > 1.5


def test_gray_is_pillows():
    image = landscape(33, 20, channels=1)
    difference = np.abs(through_ours(image, 75, "4:2:0") - through_pillow(image, 75, "4:2:0"))
    assert difference.mean() < 0.5


def test_transform_is_the_orthonormal_one():
    dct = jpeg_codec._DCT
    np.testing.assert_allclose(dct @ dct.T, np.eye(8), atol=1e-12)
    block = np.random.default_rng(0).normal(size=(8, 8))
    np.testing.assert_allclose(dct @ block @ dct.T, fft.dctn(block, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 95, 100])
def test_tables_are_those_that_pillow_writes(quality):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(landscape(16, 16)).save(file, "JPEG", quality=quality)
    written = Image.open(file).quantization
    for table, expected in zip(
        jpeg_codec.quantisation_tables(quality), written.values(), strict=True
    ):
        np.testing.assert_array_equal(table.ravel(), expected)


def test_gives_8_bits_whatever_it_gets():
    images = jax.random.uniform(jax.random.key(0), SHAPE, minval=-0.2, maxval=1.2)
    levels = np.asarray(jpeg(images, 60)) * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= 0 and levels.max() <= 255


def test_rows_are_independent_and_nan_stays_in_its_own():
    images = jax.random.uniform(jax.random.key(0), SHAPE)
    whole, damaged = jpeg(images, 75), jpeg(images.at[1].set(jnp.nan), 75)
    np.testing.assert_array_equal(damaged[::2], whole[::2])
    assert np.isnan(damaged[1]).all() and not np.isnan(whole).any()
    # Its place does not matter either.
    np.testing.assert_array_equal(jpeg(images[::-1], 75), whole[::-1])


def test_rounding_changes_the_gradient_and_no_value():
    images = jax.random.uniform(jax.random.key(0), SHAPE, minval=0.3, maxval=0.7)
    np.testing.assert_array_equal(
        jpeg(images, 75, rounding="exact"), jpeg(images, 75, rounding="straight_through")
    )
    exact = jax.grad(lambda x: jpeg(x, 75, rounding="exact").sum())(images)
    np.testing.assert_array_equal(exact, 0.0)
    by_default = jax.grad(lambda x: jpeg(x, 75).sum())(images)
    assert float(jnp.abs(by_default).max()) > 0.5
    np.testing.assert_array_equal(by_default, jax.grad(lambda x: JPEG(75)(x).sum())(images))


def test_straight_through_gradient_is_that_of_the_codec_without_rounding():
    """Low contrast, so that nothing is clipped: without rounding the codec is then linear."""
    shape = (1, 9, 11, 3)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.uniform(0.4, 0.6, shape))
        weights, direction = (
            jnp.asarray(rng.normal(size=shape)),
            jnp.asarray(rng.normal(size=shape)),
        )

        def unrounded(step):
            return jnp.sum(weights * jpeg(images + step * direction, 75, "4:2:0", "none"))

        expected = (unrounded(1e-3) - unrounded(-1e-3)) / 2e-3
        gradient = jax.grad(lambda x: jnp.sum(weights * jpeg(x, 75, "4:2:0", "straight_through")))(
            images
        )
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose(jnp.sum(gradient * direction), expected, rtol=1e-6)


def test_black_and_white_pixels_have_a_gradient():
    images = jnp.concatenate([jnp.zeros((1, 8, 8, 1)), jnp.ones((1, 8, 8, 1))])
    gradient = jax.grad(lambda x: JPEG(90)(x).sum())(images)
    assert float(jnp.abs(gradient).min()) > 0.5


def test_settings_are_static_and_compare():
    assert JPEG(75) == JPEG() and hash(JPEG(75)) == hash(JPEG())
    assert JPEG(75) != JPEG(50)
    assert jax.tree.leaves(JPEG(75)) == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"quality": 0}, ValueError, "`quality` must be at least 1, got 0"),
        ({"quality": 101}, ValueError, "`quality` .* at most 100, got 101"),
        ({"quality": 75.0}, TypeError, "`quality` must be an integer"),
        ({"subsampling": "4:2:2"}, ValueError, "`subsampling` must be one of"),
        ({"rounding": "soft"}, ValueError, "`rounding` must be one of"),
    ],
)
def test_wrong_settings(arguments, error, words):
    with pytest.raises(error, match=words):
        JPEG(**arguments)
    with pytest.raises(error, match=words):
        jpeg(jnp.zeros((1, 8, 8, 3)), **arguments)


def test_wrong_images():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        jpeg(jnp.zeros((1, 8, 8, 2)))
    with pytest.raises(TypeError, match="divide uint8"):
        jpeg(jnp.zeros((1, 8, 8, 3), jnp.uint8))
