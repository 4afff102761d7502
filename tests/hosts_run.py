"""One of several processes, or the only one: what it computes goes to FOLDER/NUMBER.json.

hosts_run.py FOLDER WHAT [--coordinator_address=... --num_processes=... --process_id=...], started by test_hosts. WHAT:
'all' computes, on all devices of all processes, what must not depend on their number; 'loop' steps until a stop is
agreed on or another process is gone.
"""

import json
import sys
import time
from pathlib import Path

import devices_run
import hard_tasks_run
import jax
import numpy as np
from absl import flags

from mtl_jax import evaluation, init_head, init_scale_shift, pretrain
from mtl_jax.launch import hosts, program, signals
from mtl_jax.meta import Embed, Frozen, Inner


def raw(logits, labels):
    """An outcome that keeps the logits."""
    return logits


def evaluate(devices, mode, adapt="head"):
    """Logits of seven tasks: a number that no number of devices divides."""
    module = devices_run.small_backbone(**devices_run.OPTIONS)
    images = devices_run.IMAGES
    variables = devices_run.floats(pretrain.init_backbone(jax.random.key(0), module, images.shape[1:]))
    learned = {"head": init_head(jax.random.key(1), 4, 2), "ss": init_scale_shift(variables["params"])}
    model = evaluation.Model(Embed(module, mode), learned, Frozen(variables["params"], variables["batch_stats"]))
    protocol = evaluation.Protocol(2, 1, 2, 7, 0, Inner(2, 0.1, adapt=adapt), flips=mode == "running")
    kept = {"outcome": raw, "chunk": 3, "embed_batch": 9, "devices": devices}
    return evaluation.evaluate_tasks(model, images, devices_run.TABLE, protocol, **kept).tolist()


def compute(devices):
    """Everything, by name."""
    return {
        "meta": devices_run.meta_training(devices, "running"),
        "pretrain": devices_run.pretraining(devices),
        "hard, host": hard_tasks_run.run(devices, host=True),
        "evaluate": {mode: evaluate(devices, mode) for mode in ("running", "batch")},
        "evaluate, all": evaluate(devices, "running", adapt="all"),
    }


def loop(devices, folder):
    """Steps of a hundredth of a second; returns how many were taken when all agreed to stop."""
    step = jax.pmap(lambda x: jax.lax.pmean(x, "d"), "d", devices=devices)
    own = np.ones(jax.local_device_count())
    with signals.stop_on_signal() as request:
        stop = hosts.stop_together(request, devices)
        dispatch = hosts.polling(lambda state, at: (step(state), {}), stop)
        taken = 0
        while not stop:
            own, _ = dispatch(own, taken)
            taken += 1
            if taken == 5:
                (folder / f"{jax.process_index()}.started").touch()
            time.sleep(0.01)
    return {"taken": taken, "signal": request.signal}


def main(argv):
    """The program."""
    values = flags.FlagValues()
    hosts.define_flags(values)
    _, folder, what = values(argv)
    folder = Path(folder)
    hosts.join(values)
    devices = hosts.devices()
    found = compute(devices) if what == "all" else loop(devices, folder)
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
    return 0 if what == "all" else signals.EXIT_GO_ON_LATER


if __name__ == "__main__":
    sys.exit(program.run(main))
