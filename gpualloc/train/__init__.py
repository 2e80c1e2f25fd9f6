"""A training loop that does what was planned: `gpualloc.train.prepare` in three lines of a script of yours.

    training = gpualloc.train.prepare(model, optimizer, dataset, num_epochs=3, per_device_batch_size=32)
    for inputs, targets in training.batches():
        training.step(loss_of(training.model(inputs), targets))

The same script runs alone, under torchrun, and by `gpualloc run` on every engine.
"""

from gpualloc.train.prepare import prepare
from gpualloc.train.training import Training

__all__ = ["Training", "prepare"]
