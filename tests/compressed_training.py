"""A network that trains in a moment, and its trainings with a compression, for tests of these."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust import pruning
from jaxrobust.attacks import PGD
from jaxrobust.training import (
    ADMM,
    SGD,
    Cosine,
    CrossEntropy,
    Data,
    Hydra,
    Network,
    Recipe,
    RigL,
    create_state,
    fit,
    train_step,
)

KEY = jax.random.key(0)
PGD_2 = PGD(0.05, 0.02, num_steps=2)


class Net(nn.Module):
    """Two kernels to compress, one of each kind of parameter, and a head that is excluded."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.Conv(4, (2, 2), name="block_0")(images)
        features = nn.BatchNorm(use_running_average=not train, momentum=0.8, name="bn")(features)
        features = nn.relu(features).reshape(len(images), -1)
        features = nn.relu(nn.Dense(8, name="block_1")(features))
        return nn.Dense(3, name="head")(features)


def examples(count, seed=0):
    """Images in which one row is bright: the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.integers(0, 90, (count, 3, 3, 1)).astype(np.uint8)
    images[np.arange(count), labels] += 120
    return images, labels


# One object, so that programs compiled for it serve all runs.
NET = Net()
TRAIN, VALIDATION = examples(48), examples(24, seed=1)
RECIPE = Recipe(
    num_epochs=4,
    batch_size=8,
    optimizer=SGD(weight_decay=1e-3),
    schedule=Cosine(0.1),
    objective=CrossEntropy(natural_weight=0.1),
    adversary=PGD_2,
)
# A step of plain gradient descent at rate 1 on clean images: the parameters move by minus the gradient.
PLAIN = Recipe(optimizer=optax.sgd, schedule=optax.constant_schedule(1.0))
METHODS = {
    "admm": ADMM(kept=0.3, rho=0.05),
    "admm funnel": ADMM(pruning.Funnel(), kept=(1.0, 0.5, 0.3), every=4, rho_growth=1.3),
    "hydra": Hydra(kept=0.3),
    "rigl": RigL(kept=0.3, every=5),
}
NUM_WEIGHTS = 2 * 2 * 1 * 4 + 36 * 8


def run(compression, recipe=RECIPE, validation=None, **arguments):
    recipe = dataclasses.replace(recipe, compression=compression)
    return fit(NET, Data(TRAIN, validation), recipe, progress=False, **arguments)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@functools.cache
def initial():
    return Net().init(KEY, jnp.zeros((1, 3, 3, 1)))


def started(compression, recipe=PLAIN):
    recipe = dataclasses.replace(recipe, compression=compression)
    return create_state(initial(), recipe, key=KEY)


def kernels(params):
    return {name: np.asarray(params[name]["kernel"]) for name in ("block_0", "block_1")}


def plain_step(state, compression, **changes):
    return train_step(
        state,
        (TRAIN[0][:8], TRAIN[1][:8]),
        KEY,
        network=Network(Net()),
        recipe=dataclasses.replace(PLAIN, compression=compression, **changes),
        steps_per_epoch=1,
    )
