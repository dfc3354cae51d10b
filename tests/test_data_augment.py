"""Augmentation: closed forms, Pillow as the other opinion, and invariants."""

import colorsys
import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxrobust.data import augment, colour, warp
from jaxrobust.data.augment import SPORTS10_A, SPORTS10_B, Augmentation

KEY = jax.random.key(7)
PRESETS = {"A": SPORTS10_A, "B": SPORTS10_B}


warp_image = jax.jit(warp.warp)  # operation by operation, each shape compiles each of them


def warped(image, **steps):
    return np.asarray(warp_image(image, jax.jit(warp.matrix)(**steps)))


def augmented(augmentation, images, key=KEY):
    return np.asarray(jax.jit(augmentation)(key, images))


def batch(size=6, height=8, width=8, channels=3, seed=0):
    shape = (size, height, width, channels)
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def uint8_image(height=12, width=16, seed=1):
    """A smooth photograph-like image: rounding errors of the angle stay small."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def as_float(image):
    return jnp.asarray(image, jnp.float32) / 255


# The warp, in closed form.


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4, 1), (1, 6, 2), (6, 1, 3), (1, 1, 3)])
def test_identity_is_bitwise(shape):
    image = jax.random.uniform(KEY, shape)
    np.testing.assert_array_equal(warped(image), image)


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4, 1), (1, 6, 2)])
def test_flip_is_flip(shape):
    image = jax.random.uniform(KEY, shape)
    np.testing.assert_array_equal(warped(image, flip=True), image[:, ::-1])


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_is_counter_clockwise(size, turns):
    image = jax.random.uniform(KEY, (size, size, 3))
    rotated = warped(image, rotation=90.0 * turns)
    np.testing.assert_allclose(rotated, np.rot90(image, turns), atol=1e-5)


@pytest.mark.parametrize("right, down", [(2, 0), (0, 3), (-1, -2), (20, 0), (0, -20)])
def test_translation_by_whole_pixels_shifts_and_fills_with_black(right, down):
    image = jax.random.uniform(KEY, (6, 7, 3))
    expected = np.zeros_like(image)
    for row in range(6):
        for column in range(7):
            if 0 <= row - down < 6 and 0 <= column - right < 7:
                expected[row, column] = image[row - down, column - right]
    moved = warped(image, translation=(float(right), float(down)))
    np.testing.assert_array_equal(moved, expected)


def test_translation_by_half_a_pixel_is_the_mean_of_neighbours():
    image = jax.random.uniform(KEY, (1, 6, 1))
    moved = warped(image, translation=(0.5, 0.0))[0, :, 0]
    expected = np.concatenate([image[0, :1, 0], (image[0, :-1, 0] + image[0, 1:, 0]) / 2])
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_zoom_by_two_shows_the_middle():
    image = jnp.zeros((8, 8, 1)).at[2:6, 2:6].set(1.0)
    zoomed = warped(image, zoom=2.0)
    assert float(zoomed[1:-1, 1:-1].min()) == 1.0
    shrunk = warped(jnp.ones((8, 8, 1)), zoom=0.5)
    np.testing.assert_array_equal(shrunk, image)


def test_crop_of_a_corner():
    """The upper left quarter, blown up: what Pillow's resize with a box gives."""
    image = uint8_image(16, 16)
    move = warp.matrix(crop_size=(0.5, 0.25), crop_centre=(-4.0, -6.0))
    cropped = warp_image(as_float(image), move) * 255
    expected = Image.fromarray(image).transform(
        (16, 16), Image.Transform.EXTENT, (0, 0, 8, 4), Image.Resampling.BILINEAR
    )
    np.testing.assert_allclose(cropped, np.asarray(expected), atol=1.0)


@pytest.mark.parametrize("angle", [15.0, -33.0, 120.0])
def test_rotation_agrees_with_pillow(angle):
    image = uint8_image()
    rotated = warped(as_float(image), rotation=angle) * 255
    expected = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)
    np.testing.assert_allclose(rotated, np.asarray(expected), atol=1.5)


def test_any_matrix_agrees_with_pillow():
    image = uint8_image()
    height, width, _ = image.shape
    move = warp.matrix(
        crop_size=(0.8, 0.7),
        crop_centre=(1.0, -0.5),
        flip=True,
        rotation=20.0,
        zoom=1.1,
        translation=(1.0, -2.0),
    )
    # Pillow measures from the corner of the first pixel.
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    whole = np.linalg.inv(to_centre) @ np.vstack([np.asarray(move), [0, 0, 1]]) @ to_centre
    expected = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE,
        tuple(whole[:2].ravel()),
        Image.Resampling.BILINEAR,
    )
    warped = warp_image(as_float(image), move) * 255
    np.testing.assert_allclose(warped, np.asarray(expected), atol=1.5)


def test_steps_are_crop_flip_rotation_zoom_translation():
    """In that order: the matrix undoes the steps, the last one first."""
    cos, sin = np.cos(np.radians(20.0)), np.sin(np.radians(20.0))
    crop = np.array([[1 / 0.8, 0, -1.0 / 0.8], [0, 1 / 0.7, 0.5 / 0.7], [0, 0, 1]])
    flip = np.diag([-1, 1, 1])
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])  # y points down
    zoom = np.diag([1.1, 1.1, 1])
    translation = np.array([[1, 0, 3.0], [0, 1, -2.0], [0, 0, 1]])
    move = warp.matrix(
        crop_size=(0.8, 0.7),
        crop_centre=(1.0, -0.5),
        flip=True,
        rotation=20.0,
        zoom=1.1,
        translation=(3.0, -2.0),
    )
    expected = np.linalg.inv(translation @ zoom @ rotation @ flip @ crop)[:2]
    np.testing.assert_allclose(move, expected, atol=1e-5)


def test_one_warp_equals_the_chain_of_exact_ones():
    image = jax.random.uniform(KEY, (8, 8, 3))
    chained = np.rot90(image[:, ::-1])
    chained = np.pad(chained, ((1, 0), (2, 0), (0, 0)))[:8, :8]
    result = warped(image, flip=True, rotation=90.0, translation=(2.0, 1.0))
    np.testing.assert_allclose(result, chained, atol=1e-5)


# Colours, in closed form and against Pillow.


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.0, 1.3])
@pytest.mark.parametrize(
    "adjust, enhancer",
    [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_colours_agree_with_pillow(adjust, enhancer, factor):
    for seed in range(3):
        image = uint8_image(seed=seed)
        expected = enhancer(Image.fromarray(image)).enhance(factor)
        adjusted = adjust(as_float(image), factor) * 255
        # Pillow rounds the gray and the result down to whole levels.
        np.testing.assert_allclose(adjusted, np.asarray(expected), atol=1.6)


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.25, 0.5, 1.0])
def test_hue_agrees_with_colorsys(shift):
    image = batch(1)[0].at[0, :3].set(jnp.array([[0.5] * 3, [0.0] * 3, [1.0, 1.0, 0.0]]))
    adjusted = np.asarray(colour.adjust_hue(image, shift))
    for pixel, result in zip(image.reshape(-1, 3), adjusted.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_brightness_is_a_product():
    image = batch(1)[0]
    expected = np.minimum(np.asarray(image) * np.float32(1.5), 1)
    np.testing.assert_array_equal(colour.adjust_brightness(image, 1.5), expected)


def test_contrast_keeps_the_mean_gray():
    image = 0.3 + 0.4 * batch(1)[0]
    luma = jnp.array([0.299, 0.587, 0.114])
    adjusted = colour.adjust_contrast(image, 0.5)
    np.testing.assert_allclose((adjusted @ luma).mean(), (image @ luma).mean(), rtol=1e-5)
    np.testing.assert_allclose(adjusted.std(), image.std() / 2, rtol=0.05)


def test_gray_images_have_no_saturation_and_no_hue():
    image = batch(1, channels=1)[0]
    np.testing.assert_array_equal(colour.adjust_saturation(image, 0.3), image)
    np.testing.assert_array_equal(colour.adjust_hue(image, 0.3), image)
    assert not np.array_equal(colour.adjust_contrast(image, 0.3), image)


# The augmentation.


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_no_ranges_is_the_identity(channels):
    images = batch(channels=channels)
    np.testing.assert_array_equal(Augmentation()(KEY, images), images)
    np.testing.assert_array_equal(augmented(Augmentation(), images), images)


def test_certain_flip():
    images = batch()
    np.testing.assert_array_equal(augmented(Augmentation(flip=1.0), images), images[:, :, ::-1])


def test_flip_is_drawn_with_its_probability():
    images = jnp.tile(batch(1, 2, 2), (2000, 1, 1, 1))
    flipped = augmented(Augmentation(flip=0.3), images)
    rate = float(jnp.mean(jnp.any(flipped != images, axis=(1, 2, 3))))
    assert abs(rate - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5


def test_brightness_factors_fill_their_range():
    images = jnp.full((2000, 1, 1, 3), 0.5)
    factors = augmented(Augmentation(brightness=0.2), images)[:, 0, 0, 0] / 0.5
    assert 0.8 <= float(factors.min()) < 0.802 and 1.198 < float(factors.max()) <= 1.2 + 1e-6
    assert abs(float(factors.mean()) - 1) < 4 * 0.4 / 12**0.5 / 2000**0.5


def test_brightness_above_one_never_turns_negative():
    images = jnp.full((500, 1, 1, 3), 0.1)
    factors = augmented(Augmentation(brightness=3.0), images)[:, 0, 0, 0] / 0.1
    assert 0 <= float(factors.min()) < 0.05 and 3.9 < float(factors.max()) <= 4.001


def test_translation_is_in_whole_pixels_and_in_range():
    image = np.zeros((20, 20, 1), np.float32)
    image[10, 10] = 1
    moved = augmented(Augmentation(translate=0.1), jnp.tile(image, (500, 1, 1, 1)))[..., 0]
    assert set(np.unique(moved)) == {0.0, 1.0}
    rows, columns = np.nonzero(moved)[1:]
    assert len(rows) == 500
    assert set(rows - 10) == set(columns - 10) == {-2, -1, 0, 1, 2}


def test_rotation_is_in_range():
    """A point far from the centre tells the angle."""
    image = np.zeros((101, 101, 1), np.float32)
    image[49:52, 89:92] = 1
    rotated = augmented(Augmentation(rotation=15.0), jnp.tile(image, (200, 1, 1, 1)))[..., 0]
    grid = np.arange(101) - 50
    x = (rotated * grid).sum((1, 2)) / rotated.sum((1, 2))
    y = (rotated * grid[:, None]).sum((1, 2)) / rotated.sum((1, 2))
    angles = np.degrees(np.arctan2(-y, x))
    assert -15.2 < angles.min() < -13 and 13 < angles.max() < 15.2


def test_two_rotations_add_up():
    image = np.zeros((101, 101, 1), np.float32)
    image[49:52, 89:92] = 1
    both = Augmentation(rotation=15.0, affine_rotation=10.0)
    rotated = augmented(both, jnp.tile(image, (300, 1, 1, 1)))[..., 0]
    grid = np.arange(101) - 50
    angles = np.degrees(
        np.arctan2(-(rotated * grid[:, None]).sum((1, 2)), (rotated * grid).sum((1, 2)))
    )
    assert 20 < np.abs(angles).max() < 25.2
    expected = (15**2 / 3 + 10**2 / 3) ** 0.5  # of the sum of two uniform draws
    assert abs(angles.std() - expected) < 1.5


def test_zoom_is_in_range():
    image = np.zeros((64, 64, 1), np.float32)
    image[16:48, 16:48] = 1
    zoomed = augmented(Augmentation(zoom=(0.5, 1.5)), jnp.tile(image, (200, 1, 1, 1)))
    sides = np.sqrt(zoomed.sum((1, 2, 3))) / 32
    assert 0.49 < sides.min() < 0.55 and 1.45 < sides.max() < 1.51


@pytest.mark.parametrize("height, width", [(24, 24), (12, 30)])
def test_crops_have_the_area_and_shape_that_were_asked_for(height, width):
    """Two ramps tell what part of the image each result shows."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    ramps = jnp.stack([rows / height, columns / width], -1).astype(jnp.float32)
    crop = Augmentation(crop_scale=(0.3, 0.6), crop_ratio=(3 / 4, 4 / 3))
    result = augmented(crop, jnp.tile(ramps, (400, 1, 1, 1)))
    tall = (result[:, -2, 0, 0] - result[:, 1, 0, 0]) * height * height / (height - 3)
    wide = (result[:, 0, -2, 1] - result[:, 0, 1, 1]) * width * width / (width - 3)
    area, ratio = tall * wide / (height * width), wide / tall
    assert area.min() > 0.28 and area.max() < 0.62
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    largest = min(0.6, 12 * 16 / (12 * 30)) if width == 30 else 0.6
    assert area.min() < 0.32 and largest - 0.02 < area.max()
    assert result[:, 0, 0].min() < 0.05 and result[:, -1, -1].max() > 0.93


def test_crop_that_cannot_fit_takes_the_largest_shape_that_is_allowed():
    columns = jnp.tile(jnp.arange(40.0) / 40, (1, 10, 1))[..., None]
    crop = Augmentation(crop_scale=(0.999, 1.0), crop_ratio=(1.0, 1.0))
    result = augmented(crop, columns)[0, :, :, 0]
    slope = float(result[0, -2] - result[0, 1]) / 37 * 40
    assert slope == pytest.approx(10 / 40, abs=1e-3)  # a square of 10 pixels, blown up


@pytest.mark.parametrize("name", PRESETS)
def test_presets_change_images_and_differ_between_them(name):
    images = jnp.tile(batch(1, 16, 16), (4, 1, 1, 1))
    result = augmented(PRESETS[name], images)
    assert all(np.abs(result[i] - images[i]).max() > 0.05 for i in range(4))
    assert all(np.abs(result[i] - result[0]).max() > 0.05 for i in range(1, 4))


def test_presets_are_the_sources_ranges():
    assert dataclasses.asdict(SPORTS10_A) == {
        "crop_scale": (0.6, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "rotation": 15.0,
        "affine_rotation": 10.0,
        "translate": 0.1,
        "zoom": (0.9, 1.1),
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.0,
    }
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    assert Augmentation(flip=0.5, rotation=15.0, **jitter) == SPORTS10_B


@pytest.mark.parametrize("name", PRESETS)
def test_jit_equals_no_jit(name):
    images = batch(2)
    plain, compiled = PRESETS[name](KEY, images), jax.jit(PRESETS[name])(KEY, images)
    np.testing.assert_allclose(plain, compiled, atol=2e-5)


def test_passes_through_jit_as_a_static_argument():
    traces = []

    @jax.jit
    def step(augmentation, key, images):
        traces.append(augmentation)
        return augmentation(key, images)

    images = batch(2)
    for augmentation in (Augmentation(flip=1.0), Augmentation(flip=1.0), Augmentation(hue=0.1)):
        step(augmentation, KEY, images)
    assert traces == [Augmentation(flip=1.0), Augmentation(hue=0.1)]


def test_switching_one_off_leaves_the_other_draws():
    images = 0.5 * batch()
    both = augmented(Augmentation(flip=0.5, translate=0.2, brightness=0.2), images)
    moved = augmented(Augmentation(flip=0.5, translate=0.2), images)
    factors = jnp.max(both, axis=(1, 2, 3)) / jnp.max(moved, axis=(1, 2, 3))
    np.testing.assert_allclose(both, moved * factors[:, None, None, None], atol=1e-5)


compiled = {name: jax.jit(preset) for name, preset in PRESETS.items()}
quick = hypothesis.settings(max_examples=15, deadline=None)


@quick
@hypothesis.given(
    name=st.sampled_from(sorted(PRESETS)),
    key=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 999),
    extreme=st.booleans(),
)
def test_stays_in_the_box_and_repeats_itself(name, key, seed, extreme):
    images = jnp.round(batch(seed=seed)) if extreme else batch(seed=seed)
    key = jax.random.key(key)
    result = compiled[name](key, images)
    assert result.shape == images.shape and result.dtype == images.dtype
    assert float(result.min()) >= 0 and float(result.max()) <= 1
    np.testing.assert_array_equal(result, compiled[name](key, images))
    assert not np.array_equal(result, compiled[name](jax.random.fold_in(key, 1), images))


@quick
@hypothesis.given(
    name=st.sampled_from(sorted(PRESETS)),
    size=st.sampled_from([1, 3]),
    key=st.integers(0, 2**32 - 1),
)
def test_image_depends_on_its_position_and_nothing_else(name, size, key):
    images, key = batch(), jax.random.key(key)
    others = batch(seed=9).at[:size].set(images[:size])
    whole = compiled[name](key, images)
    # Other programs may round otherwise in the last bit.
    np.testing.assert_allclose(compiled[name](key, images[:size]), whole[:size], atol=2e-5)
    np.testing.assert_array_equal(compiled[name](key, others)[:size], whole[:size])


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 1, 5, 1), (3, 7, 4, 3)])
def test_any_shape_will_do(shape):
    everything = dataclasses.replace(SPORTS10_A, hue=0.1)
    result = augmented(everything, jax.random.uniform(KEY, shape))
    assert result.shape == shape
    assert result.min() >= 0 and result.max() <= 1


def test_keeps_the_type_of_the_images():
    images = batch().astype(jnp.bfloat16)
    everything = dataclasses.replace(SPORTS10_A, hue=0.1)
    assert jax.eval_shape(everything, KEY, images).dtype == jnp.bfloat16


# Arguments.


@pytest.mark.parametrize(
    "field, value, error",
    [
        ("flip", 1.5, ValueError),
        ("flip", "0.5", TypeError),
        ("rotation", -1.0, ValueError),
        ("affine_rotation", 181.0, ValueError),
        ("translate", 2.0, ValueError),
        ("hue", 0.6, ValueError),
        ("brightness", -0.1, ValueError),
        ("contrast", float("nan"), ValueError),
        ("saturation", None, TypeError),
        ("crop_scale", 0.6, TypeError),
        ("crop_scale", (0.6, 1.1), ValueError),
        ("crop_scale", (0.0, 1.0), ValueError),
        ("crop_ratio", (2.0, 1.0), ValueError),
        ("zoom", (0.9, 1.0, 1.1), TypeError),
    ],
)
def test_ranges_are_checked(field, value, error):
    with pytest.raises(error, match=f"`{field}`"):
        Augmentation(**{field: value})


def test_ranges_from_json_are_hashable():
    assert hash(Augmentation(zoom=[0.9, 1.1])) == hash(Augmentation(zoom=(0.9, 1.1)))


def test_images_are_checked():
    with pytest.raises(TypeError, match="255"):
        SPORTS10_A(KEY, jnp.zeros((1, 4, 4, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"\[B, H, W, C\].*\(4, 4, 3\)"):
        SPORTS10_A(KEY, jnp.zeros((4, 4, 3)))
    for name in ("saturation", "hue"):
        with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
            Augmentation(**{name: 0.1})(KEY, jnp.zeros((1, 4, 4, 4)))


def test_module_is_public():
    from jaxrobust import data

    assert data.augment is augment
