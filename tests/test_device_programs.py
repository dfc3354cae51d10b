"""What an accelerator is given to do, read from programs that are lowered or compiled on a CPU.

A chunk of an attack is one program: the whole attack of a batch, or a few steps of all lanes.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_table import TABLE
from counting import num_compiled
from small_networks import SMALL
from verdicts import classifier, examples

from jaxrobust import compilation, evaluation, models, programs
from jaxrobust.attacks import PGD, conversation, engine, lanes
from jaxrobust.attacks.attack import epsilon_of
from jaxrobust.evaluation import Execution
from jaxrobust.types import fold_keys

SIZE = 4
IMAGES = np.random.default_rng(0).random((SIZE, 8, 8, 3), np.float32)
# Custom calls of StableHLO that every platform has. All others are kernels or calls to the host.
COMMON = {"mhlo.topk"}


def small_cnn(images):
    """A network with max pooling, whose gradients the fast forms compute without select_and_scatter."""
    network = models.create("simple_cnn", **SMALL["simple_cnn"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.tree.map(
        lambda one: np.ones(one.shape, one.dtype), shapes
    )  # never computed with
    return models.Classifier(network.apply, variables, np.full(3, 0.5), np.full(3, 0.25))


def calling_host(images):
    means = images.mean((1, 2))
    told = jax.pure_callback(np.asarray, means, jax.lax.stop_gradient(means))
    return means + told


def batch(attack, logits_fn):
    """The arguments of the attack of a batch."""
    function = programs.as_argument(logits_fn, IMAGES)
    keys = fold_keys(jax.random.key(0), jnp.arange(SIZE))
    return conversation.per_image(attack, SIZE), keys, function, IMAGES, jnp.zeros(SIZE, jnp.int32)


def in_lanes(attack, logits_fn):
    """The arguments of a few steps of all lanes."""
    attack, keys, function, images, labels = batch(attack, logits_fn)
    restarts, idle = jnp.zeros(SIZE, jnp.int32), jnp.zeros(SIZE, bool)
    begun = jax.eval_shape(lanes.start, attack, keys, images, labels, restarts, idle)
    return begun, function, jnp.int32(4)


def steps(*arguments):
    # An attack without an epsilon looks for the smallest perturbation, and never ends early.
    bounded = epsilon_of(arguments[0].attack) is not None
    return lanes.advance_on_devices(
        *arguments, until_fooled=bounded, group=compilation.group_sizes(), num_devices=1
    )


def host_calls(text):
    """What a program in StableHLO or HLO asks of the host, and kernels that not every platform has."""
    called = set(re.findall(r"custom_call @([\w.$]+)|custom_call_target=\"([^\"]+)\"", text))
    moved = re.findall(r"\b(infeed|outfeed|send|recv)\b", text)
    return {a or b for a, b in called} - COMMON | set(moved)


@pytest.fixture
def gpu(monkeypatch):
    """Traces programs as on a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("form", [(engine.run, batch), (steps, in_lanes)], ids=["batch", "lanes"])
@pytest.mark.parametrize("name", TABLE)
def test_a_whole_attack_is_exported_for_a_gpu(name, form, gpu):
    function, arguments_of = form
    exported = jax.export.export(jax.jit(function), platforms=["cuda"])(
        *arguments_of(TABLE[name], small_cnn(IMAGES))
    )
    text = exported.mlir_module()
    assert exported.platforms == ("cuda",) and not host_calls(text)
    # Plain operations, with the gradient of pooling that the CPU has a faster form of.
    assert "stablehlo.reduce_window" in text
    assert ("stablehlo.select_and_scatter" in text) == TABLE[name].uses_gradient
    # Channels stay last: of images, of outputs, and of the batches that are transposed.
    layouts = re.findall(r"dim_numbers = \[(.*?)\]x\[.*?\]->\[(.*?)\]", text)
    assert layouts and {axes for pair in layouts for axes in pair} == {"b, 0, 1, f"}
    assert not re.search(rf"stablehlo.transpose .*\(tensor<{SIZE}x\d+x\d+x\d+xf32>\)", text)


def test_a_call_to_the_host_is_found(gpu):
    text = jax.jit(steps).lower(*in_lanes(PGD(0.1, 0.03, 5), calling_host)).as_text()
    assert any("callback" in call for call in host_calls(text))


def aliased(text):
    """The parameters whose memory the results take over, by a compiled program's first line."""
    found = re.search(r"input_output_alias=\{(.*?)\}, entry", text.partition("\n")[0])
    return re.findall(r": \((\d+), \{\}", found[1]) if found else []


def test_compiled_steps_stay_on_the_device_and_reuse_the_memory_of_the_lanes():
    attack, logits_fn = PGD(0.1, 0.03, 5), classifier()
    images, labels = examples(SIZE)
    function = programs.as_argument(logits_fn, images)
    keys = fold_keys(jax.random.key(0), jnp.arange(SIZE))
    whole = conversation.per_image(attack, SIZE), keys, function, images, jnp.asarray(labels)
    assert not host_calls(engine.compiled_ascend.lower(*whole).compile().as_text())
    zeros = jnp.zeros(SIZE, jnp.int32)
    begun = lanes.start(whole[0], keys, jnp.asarray(images), whole[4], zeros, zeros > 0)
    leaves = [str(index) for index in range(len(jax.tree.leaves(begun)))]
    options = {"until_fooled": True, "group": None, "num_devices": 1}
    text = (
        lanes.compiled_advance.lower(begun, function, jnp.int32(4), **options).compile().as_text()
    )
    assert not host_calls(text) and aliased(text) == leaves
    text = lanes.compiled_refill.lower(begun, begun, jnp.arange(SIZE)).compile().as_text()
    assert aliased(text) == leaves


def sweep(num_steps, *cases):
    """Attacks with (epsilon, seed of the weights, number of images); some starts are cancelled."""
    for epsilon, seed, size in cases:
        evaluation.attack_dataset(
            PGD(epsilon, 0.01, num_steps, num_restarts=2),
            classifier(seed),
            *examples(size),
            key=jax.random.key(0),
            until_fooled=True,
            execution=Execution(16),
        )


@pytest.mark.parametrize(("groups", "num_steps"), [((4,), 18), (None, 19)])
def test_chunks_epsilons_models_and_a_smaller_data_set_share_one_program(
    groups, num_steps, monkeypatch
):
    monkeypatch.setattr(compilation, "group_sizes", lambda: groups)
    names = ("advance_on_devices", "refill", "start")
    before = [num_compiled(name) for name in names]
    sweep(num_steps, (0.03, 0, 45), (0.02, 1, 45), (0.05, 2, 37), (0.03, 0, 9))
    compiled = [num_compiled(name) - count for name, count in zip(names, before, strict=True)]
    assert compiled == [1, 1, 2]  # all lanes start together, and later a few of them


def test_batches_of_one_size_share_one_program():
    attack, before = PGD(0.03, 0.01, 17), num_compiled("ascend")
    for epsilon, seed in ((0.03, 0), (0.02, 1), (np.full(20, 0.05, np.float32), 2)):
        images, labels = examples(20)
        swept = PGD(epsilon, 0.01, attack.num_steps)
        swept(jax.random.key(seed), classifier(seed), images, labels)
    assert num_compiled("ascend") == before + 1


def test_between_two_chunks_only_counts_and_finished_points_are_read_and_no_weight_is_sent(
    monkeypatch,
):
    read, points, chunks, advance = [], [], [], lanes.compiled_advance
    asarray = np.asarray

    def advanced(running, function, num_steps, **options):
        given = jax.tree.leaves((running, function, num_steps))
        chunks.append(all(isinstance(leaf, jax.Array) for leaf in given))
        return advance(running, function, num_steps, **options)

    def got(tree):
        read.append(max(leaf.ndim for leaf in jax.tree.leaves(tree)))
        return [asarray(leaf) for leaf in tree]

    def noted(value, *arguments, **keywords):
        if isinstance(value, jax.Array) and value.ndim == 4:
            points.append(len(value))
        return asarray(value, *arguments, **keywords)

    monkeypatch.setattr(np, "asarray", noted)
    monkeypatch.setattr(lanes, "compiled_advance", advanced)
    monkeypatch.setattr(jax, "device_get", got)
    shown = classifier()
    on_host = models.Classifier(
        shown.apply_fn, jax.tree.map(asarray, shown.variables), shown.mean, shown.std
    )
    options = {"key": jax.random.key(0), "execution": Execution(16)}
    evaluation.attack_dataset(PGD(0.03, 0.01, 18), on_host, *examples(45), **options)
    assert len(chunks) > 20 and all(chunks)
    assert read == [1] * len(chunks)
    # Pieces of an eighth of the lanes, whose jobs are over; 45 are those of the whole data set.
    assert set(points) == {2, 45}


def test_lanes_that_are_resumed_compile_nothing_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "group_sizes", lambda: (4,))

    def attack(epsilon, stop=False):
        def progress(name, done, size):
            if stop and done > size // 2:
                raise KeyboardInterrupt

        evaluation.attack_dataset(
            PGD(epsilon, 0.01, 16),
            classifier(),
            *examples(45),
            key=jax.random.key(0),
            execution=Execution(16, progress=progress, path=tmp_path / f"{epsilon}.npz"),
        )

    attack(0.03)
    with pytest.raises(KeyboardInterrupt):
        attack(0.02, stop=True)
    assert (tmp_path / "0.02.npz").exists()
    before = num_compiled("advance_on_devices")
    attack(0.02)
    attack(0.05)
    assert num_compiled("advance_on_devices") == before


def test_a_second_batch_reads_no_image_from_the_device(monkeypatch):
    read, asarray = [], np.asarray

    def noted(value, *arguments, **keywords):
        if isinstance(value, jax.Array):
            read.append(value.ndim)
        return asarray(value, *arguments, **keywords)

    images, labels = map(jnp.asarray, examples(20))
    attack, shown = PGD(0.03, 0.01, 17), classifier()
    attack(jax.random.key(0), shown, images, labels)
    monkeypatch.setattr(np, "asarray", noted)
    attack(jax.random.key(0), shown, images, labels)
    assert 4 not in read
    attack(jax.random.key(0), classifier(5), images, labels)
    assert 4 in read  # other weights are checked once more
