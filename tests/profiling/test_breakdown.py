"""Where a step goes, on made traces whose parts are known."""

from __future__ import annotations

import pytest

from gpualloc.errors import GpuallocError
from gpualloc.profiling.breakdown import break_down, median_self_time_us
from gpualloc.profiling.records import PARTS, StepTimes
from gpualloc.profiling.trace import STEP_MARK, parse_trace
from tests.profiling.made_profiles import ADAM_STEP, ALL_REDUCE_KERNEL, LOADER_NEXT, event, marked


def parts_us(times: StepTimes) -> dict[str, float]:
    """Of all that are not 0."""
    names = (*PARTS, "hidden_comm_s", "matmul_s")
    found = {name.removesuffix("_s"): round(getattr(times, name) * 1e6, 6) for name in names}
    return {name: value for name, value in found.items() if value}


def test_a_gpu_step() -> None:
    """
    loader          0--20
    copy                 20-30
    gemm                    30------50
    all-reduce                   45-------60
    adam kernel                              70-80   launched inside the optimizer's range
    memset                                         80-85
    """
    trace = marked(
        event("user_annotation", LOADER_NEXT, 0, 20),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20, 30),
        event("kernel", "sm90_xmma_gemm_bf16", 30, 50, thread=7, correlation=1),
        event("kernel", ALL_REDUCE_KERNEL, 45, 60, thread=8, correlation=2),
        event("kernel", "multi_tensor_apply_kernel", 70, 80, thread=7, correlation=3),
        event("gpu_memset", "Memset (Device)", 80, 85),
        event("cuda_runtime", "cudaLaunchKernel", 21, 22, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 40, 41, correlation=3),
        event("user_annotation", ADAM_STEP, 38, 44),
        event("cuda_runtime", "cudaStreamSynchronize", 60, 61),
    )
    found = break_down(trace, device="cuda")
    assert parts_us(found.times) == {
        "input_wait": 20,
        "host_to_device": 10,
        "kernels": 20,
        "optimizer": 10,
        "exposed_comm": 10,
        "other_memory": 5,
        "launch_gap": 25,
        "hidden_comm": 5,
        "matmul": 20,
    }
    assert found.times.step_time_s == pytest.approx(100e-6)
    assert found.busy == pytest.approx(0.55)
    assert (found.times.num_launches, found.times.num_synchronisations) == (3, 1)
    assert found.times.overlap_ratio == pytest.approx(5 / 15)


def test_a_moment_counts_once_on_a_gpu() -> None:
    """Computing covers communication, which covers a copy, which covers waiting for input."""
    trace = marked(
        event("user_annotation", LOADER_NEXT, 0, 100),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 10, 90, thread=9),
        event("kernel", ALL_REDUCE_KERNEL, 20, 80, thread=8),
        event("kernel", "elementwise_kernel", 30, 60, thread=7),
        event("kernel", "elementwise_kernel", 50, 70, thread=6),
    )
    found = parts_us(break_down(trace, device="cuda").times)
    assert found == {"input_wait": 20, "host_to_device": 20, "kernels": 40, "exposed_comm": 20, "hidden_comm": 40}


def test_steps_are_averaged_and_what_is_outside_the_marks_is_not_seen() -> None:
    trace = marked(
        event("kernel", "a_kernel", -50, 10),
        event("kernel", "a_kernel", 150, 400),
        event("kernel", "a_kernel", 500, 600),
        start_us=0,
        end_us=200,
        num_steps=4,
    )
    found = break_down(trace, device="cuda").times
    assert parts_us(found) == {"kernels": 15, "launch_gap": 35}
    assert found.num_launches == 0.25


def test_a_launch_in_another_thread_is_not_the_optimizers() -> None:
    trace = marked(
        event("kernel", "a_kernel", 50, 60, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 41, 42, thread=2, correlation=1),
        event("user_annotation", ADAM_STEP, 40, 44),
    )
    assert parts_us(break_down(trace, device="cuda").times) == {"kernels": 10, "launch_gap": 90}


def test_a_cpu_step() -> None:
    """
    loader   0-----20            with an operator inside, which is loading
    linear         20------40    of which addmm is 25-38; each operator is 2 us of dispatch
    backward node           40-----60  around mm 45-58
    gloo              30----------------70
    adam                                     80-90 around add_ 82-88
    """
    trace = marked(
        event("user_annotation", LOADER_NEXT, 0, 20),
        event("cpu_op", "aten::stack", 5, 15),
        event("cpu_op", "aten::linear", 20, 40),
        event("cpu_op", "aten::addmm", 25, 38),
        event("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", 40, 60),
        event("cpu_op", "AddmmBackward0", 42, 60),
        event("cpu_op", "aten::mm", 45, 58),
        event("user_annotation", "gloo:all_reduce", 30, 70, thread=2),
        event("user_annotation", ADAM_STEP, 80, 90),
        event("cpu_op", "aten::add_", 82, 88),
        event("cpu_op", "c10d::allreduce_", 60, 62),
    )
    found = break_down(trace, device="cpu", op_overhead_us=2)
    assert found.busy is None
    # linear: 5 + 2 us of its own less 2 x 2 for itself and its child; addmm: 11; mm: 11; add_: 4.
    assert parts_us(found.times) == {
        "input_wait": 20,
        "kernels": 3 + 11 + 11,
        "optimizer": 4,
        "exposed_comm": 5 + 12,  # 40..45 and 58..70: neither addmm, linear nor mm
        "hidden_comm": 10 + 13,
        "launch_gap": 100 - 20 - 25 - 4 - 17,
        "matmul": 22,
    }
    assert found.times.step_time_s == pytest.approx(100e-6)
    assert found.times.num_launches == 5


def test_an_operator_no_longer_than_its_dispatch_does_no_work() -> None:
    trace = marked(*(event("cpu_op", "aten::mul", start, start + 3) for start in range(0, 100, 5)))
    assert parts_us(break_down(trace, device="cpu", op_overhead_us=3).times) == {"launch_gap": 100}
    assert parts_us(break_down(trace, device="cpu", op_overhead_us=1).times) == {"launch_gap": 60, "kernels": 40}


def test_a_compiled_region_works_and_its_threads_overlap() -> None:
    trace = marked(event("user_annotation", "## Call CompiledFxGraph abc ##", 10, 60), event("cpu_op", "aten::mm", 40, 90, thread=2))
    assert parts_us(break_down(trace, device="cpu").times) == {"kernels": 80, "launch_gap": 20, "matmul": 50}


def test_the_profilers_overhead_comes_off_the_gaps_and_no_more_than_they_are() -> None:
    times = break_down(marked(event("kernel", "a_kernel", 0, 70)), device="cuda").times
    assert parts_us(times.without_overhead(10e-6)) == {"kernels": 70, "launch_gap": 20}
    assert parts_us(times.without_overhead(1.0)) == {"kernels": 70}
    assert times.without_overhead(-1.0) == times


def test_communication_timed_elsewhere_comes_out_of_the_gaps() -> None:
    times = break_down(marked(event("cpu_op", "aten::mm", 0, 70)), device="cpu").times
    assert parts_us(times.with_communication(exposed_s=10e-6, hidden_s=5e-6)) == {
        "kernels": 70,
        "matmul": 70,
        "launch_gap": 20,
        "exposed_comm": 10,
        "hidden_comm": 5,
    }
    assert times.with_communication(exposed_s=1.0, hidden_s=0.0).step_time_s == pytest.approx(100e-6)


def test_self_time_is_without_operators_inside() -> None:
    trace = marked(event("cpu_op", "aten::linear", 0, 10), event("cpu_op", "aten::t", 1, 3), event("cpu_op", "aten::addmm", 4, 9))
    assert median_self_time_us(trace, "aten::linear") == 3
    assert median_self_time_us(trace, "aten::nothing") is None


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(GpuallocError, match="1 step marks and at least 2 are needed"):
        break_down(parse_trace([event("user_annotation", STEP_MARK, 0, 0)]), device="cpu")
