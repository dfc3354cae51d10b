"""Trains a small network in child processes that kill themselves at given moments.

Called by test_training_resume.py: python training_kill.py RUN_DIR MOMENT... prints the children's
exit statuses as JSON. The moments, all counted in the child itself:

    step:N          after N steps
    save:N:SECONDS  so long after its N-th save began
    commit:N        in its N-th save, before the checkpoint gets its final name
    delete:N        before the N-th file of an old checkpoint is deleted
    log:N           after its N-th save, before the log's row
    half:N          in the middle of its N-th row
    interrupt:N     Ctrl-C after N steps
    end             never
"""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxrobust.training import EMA, AdamW, Data, Plateau, Recipe, fit
from jaxrobust.training.run import checkpoints, logs


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3)(x)


def flip(key, images):
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jax.numpy.where(flipped, images[:, :, ::-1], images)


RECIPE = Recipe(
    num_epochs=5,
    batch_size=8,
    optimizer=AdamW(gradient_clip=1.0),
    schedule=Plateau(0.03, patience=0),
    augmentation=flip,
    averaging=EMA(0.9),
    seed=7,
)


def run(directory):
    random = np.random.default_rng(0)

    def examples(count):
        images = random.integers(0, 256, (count, 6, 6, 3), np.uint8)
        return images, random.integers(0, 3, count)

    data = Data(examples(43), examples(11), mean=(0.5, 0.4, 0.5), std=(0.25, 0.25, 0.25))
    fit(Net(), data, RECIPE, run_dir=directory)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner, name, count, act):
    """Makes the `count`-th call of owner.name begin with act(*arguments)."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def arm(moment):
    kind, *numbers = moment.split(":")
    if kind == "step":
        before_call(logs.ProgressBar, "advance", int(numbers[0]), lambda *_: kill())
    elif kind == "interrupt":
        before_call(
            logs.ProgressBar,
            "advance",
            int(numbers[0]),
            lambda *_: os.kill(os.getpid(), signal.SIGINT),
        )
    elif kind == "save":
        timer = threading.Timer(float(numbers[1]), kill)
        before_call(
            checkpoints.RunCheckpoints, "save", int(numbers[0]), lambda *_, **__: timer.start()
        )
    elif kind == "log":
        before_call(logs, "append_row", 2 * int(numbers[0]) - 1, lambda *_: kill())
    elif kind == "half":

        def write_half(path, row):
            with path.open("a") as file:
                file.write(json.dumps(row)[:20])
            kill()

        before_call(logs, "append_row", 2 * int(numbers[0]) - 1, write_half)
    elif kind in ("commit", "delete"):
        count = int(numbers[0])

        def on_event(event, arguments):
            nonlocal count
            # Only shutil.rmtree, by which old checkpoints go, removes files by directory handle.
            is_delete = event == "os.remove" and arguments[1] != -1
            is_commit = event == "os.rename" and Path(arguments[0]).parent.name == "checkpoints"
            if is_delete if kind == "delete" else is_commit:
                count -= 1
                if count == 0:
                    kill()

        sys.addaudithook(on_event)


def child(directory, moment):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        arm(moment)
        run(directory)
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(directory, moments):
    statuses = []
    for moment in moments:
        # A fork of a process that has imported all but touched no device: starting costs nothing.
        process = os.fork()
        if process == 0:
            os._exit(child(Path(directory), moment))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
