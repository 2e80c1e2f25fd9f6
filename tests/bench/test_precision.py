"""What each precision computes in, trains and refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gpualloc.bench import precision as precisions
from gpualloc.bench.measure import Trainer
from gpualloc.bench.precision import PRECISIONS
from gpualloc.records import BenchCase
from gpualloc.workloads import build_model, open_batches
from tests.bench.cases import tiny_case

CPU = torch.device("cpu")
LLAMA = replace(
    tiny_case(strategy="single", world_size=1),
    workload="llm",
    model="llama_tiny",
    image_size_px=None,
    sequence_length=16,
    per_device_batch_size=4,
)
_COMPUTED = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "pure_fp16": torch.float16,
    "pure_bf16": torch.bfloat16,
}
_TRAINED = {**_COMPUTED, "fp16": torch.float32, "bf16": torch.float32}


@pytest.fixture(autouse=True)
def _put_matmul_precision_back() -> object:
    yield
    precisions.set_matmul_precision("fp32")


def train(case: BenchCase, device: torch.device, *, num_steps: int) -> tuple[list[float], Trainer, set[torch.dtype]]:
    """Losses, the trainer, and the dtypes that a projection gave."""
    trainer, batches = Trainer(case, rank=0, device=device), open_batches(case, rank=0, pin_memory=False)
    seen: set[torch.dtype] = set()
    linear = next(module for module in trainer.wrapped.model.modules() if isinstance(module, nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    return [trainer.step(batches).item() for _ in range(num_steps)], trainer, seen


@pytest.mark.parametrize("case", [LLAMA, tiny_case(strategy="single", world_size=1)], ids=lambda case: case.model)
@pytest.mark.parametrize("precision", _COMPUTED)
def test_what_is_computed_and_trained(precision: str, case: BenchCase) -> None:
    losses, trainer, computed = train(
        replace(case, precision=precision), CPU, num_steps=10 if precision == "fp16" else 2
    )  # GradScaler skips the first ones
    assert computed == {_COMPUTED[precision]}
    for parameter in trainer.wrapped.model.parameters():
        assert parameter.dtype == _TRAINED[precision]
        assert parameter.grad is not None
        assert parameter.grad.dtype == _TRAINED[precision]
        assert parameter.isfinite().all()
    states = [state for state in trainer.optimizer.state.values() for name, state in state.items() if name != "step"]
    assert {state.dtype for state in states} == {_TRAINED[precision]}
    assert trainer.step(open_batches(case, rank=0, pin_memory=False)).dtype == (torch.float64 if precision == "fp64" else torch.float32)
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    exact = train(replace(case, precision="fp64"), CPU, num_steps=1)[0]
    assert losses[0] == pytest.approx(exact[0], rel=2e-2)


@pytest.mark.parametrize("precision", ["pure_fp16", "pure_bf16", "fp64"])
def test_the_checksum_takes_every_width(precision: str) -> None:
    from gpualloc.bench.measure import _checksum

    model = build_model(LLAMA, dtype=precisions.trained_dtype(precision))
    before = _checksum(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] += 1
    assert _checksum(model) != before


def test_a_cpu_has_neither_tf32_nor_fp8() -> None:
    without = {precision for precision in PRECISIONS if precisions.unsupported_reason(precision, "cpu") is not None}
    assert without == {"tf32", "fp8"}
    assert precisions.unsupported_reason("tf32", "cpu") == "tf32 is a format of GPUs"


@pytest.mark.parametrize(
    ("capability", "lacking"),
    [((7, 0), {"bf16", "pure_bf16", "tf32", "fp8"}), ((8, 0), {"fp8"}), ((9, 0), set())],
)
def test_what_a_gpu_lacks(capability: tuple[int, int], lacking: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(precisions, "compute_capability", lambda: capability)
    reasons = {precision: precisions.unsupported_reason(precision, "cuda") for precision in PRECISIONS}
    assert {precision for precision, reason in reasons.items() if reason is not None} == lacking
    assert all(f"this GPU has {capability[0]}.{capability[1]}" in str(reasons[precision]) for precision in lacking)


def test_fp8_names_the_library_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        precisions.unsupported_reason("fp8", "cuda") == "fp8 needs torchao, which is not installed here; run: pip install 'gpualloc[fp8]'"
    )


def test_only_tf32_allows_tf32() -> None:
    for precision in PRECISIONS:
        precisions.set_matmul_precision(precision)
        allowed = precision == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


def test_fp8_takes_the_linear_layers_of_the_blocks() -> None:
    pytest.importorskip("torchao.float8")
    model = build_model(LLAMA)
    names = list(model.state_dict())
    precisions.narrow_linears(model)
    narrowed = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    projections = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "gate_proj", "up_proj", "down_proj")
    assert narrowed == {f"blocks.{block}.{projection}" for block in range(2) for projection in projections}
    assert list(model.state_dict()) == names


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "fp8", *_COMPUTED])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_falls_on_a_gpu(precision: str, compiled: bool) -> None:
    reason = precisions.unsupported_reason(precision, "cuda")
    if reason is not None:
        pytest.skip(reason)
    case = replace(LLAMA, device="cuda", precision=precision, sequence_length=30, compile=compiled)
    losses, _, _ = train(case, torch.device("cuda", 0), num_steps=60)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@pytest.mark.gpu
def test_tf32_is_not_fp32_on_a_gpu() -> None:
    reason = precisions.unsupported_reason("tf32", "cuda")
    if reason is not None:
        pytest.skip(reason)
    a, b = torch.randn(2, 512, 512, device="cuda")
    exact = (a.double() @ b.double()).float()
    errors = {}
    for precision in ("fp32", "tf32"):
        precisions.set_matmul_precision(precision)
        errors[precision] = (a @ b - exact).abs().max().item()
    assert errors["tf32"] > 10 * errors["fp32"]
