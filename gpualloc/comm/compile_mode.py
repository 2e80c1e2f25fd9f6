"""What `torch._dynamo.config.optimize_ddp` does to a hooked DDP model: refused where it bypasses hooks, a warning where it ends overlap."""

from __future__ import annotations

import warnings

from torch.nn.parallel import DistributedDataParallel

from gpualloc.errors import UsageError


def check_compile_mode(ddp_model: DistributedDataParallel) -> None:
    """
    Raises:
        UsageError: the model was wrapped for compiled autograd's Python reducer, which never calls a communication hook.
    """
    from torch._dynamo.utils import get_optimize_ddp_mode  # slow to import; wrapping the model has

    if ddp_model._use_python_reducer:
        raise UsageError(
            "register_comm_hook: this model was wrapped under torch._dynamo.config.optimize_ddp='python_reducer', which reduces "
            "gradients without DDP's buckets and never calls a hook; wrap the model under the default, optimize_ddp=True"
        )
    mode = get_optimize_ddp_mode()
    if mode != "ddp_optimizer":
        warnings.warn(
            f"torch._dynamo.config.optimize_ddp is off ({mode}): if this model is compiled, all of its buckets become ready at the end of "
            "the backward pass and no communication is hidden; leave optimize_ddp=True",
            RuntimeWarning,
            stacklevel=3,
        )
