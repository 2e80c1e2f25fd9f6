"""The simulation: jobs of a trace arrive, a policy plans every round, jobs progress, restart, finish; nodes fail and come back.

One seeded loop over rounds. Within a round a job's goodput is held; finishing times inside it are exact, and its GPUs are
free from the next round on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gpualloc.errors import GpuallocError
from gpualloc.plan.protocol import Allocation, Cluster, Node, Plan, Policy
from gpualloc.plan.simulation.job_types import JobType
from gpualloc.plan.simulation.records import FinishedJob, SimulationOptions, SimulationRun, Span
from gpualloc.plan.simulation.simulated_job import SimulatedJob
from gpualloc.plan.simulation.trace import TraceJob


def simulate(
    policy: Policy, trace: Sequence[TraceJob], job_types: dict[str, JobType], cluster: Cluster, options: SimulationOptions
) -> SimulationRun:
    """Runs the trace to its end.

    Raises:
        GpuallocError: the policy broke its promises (more GPUs than there are, a job that is not there), or jobs are
            left that it never runs.
    """
    return _Simulation(policy, trace, job_types, cluster, options).run()


@dataclass
class _Simulation:
    policy: Policy
    trace: Sequence[TraceJob]
    job_types: dict[str, JobType]
    cluster: Cluster
    options: SimulationOptions
    now_s: float = 0.0
    active: dict[str, SimulatedJob] = field(default_factory=dict)
    current: dict[str, Allocation] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    finished: dict[str, FinishedJob] = field(default_factory=dict)
    failures: list[tuple[float, str]] = field(default_factory=list)
    plan_seconds: list[float] = field(default_factory=list)
    gpu_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds = np.random.SeedSequence(self.options.seed).spawn(2)
        self._job_rng = np.random.default_rng(seeds[0])
        self._node_rng = np.random.default_rng(seeds[1])
        self.waiting = sorted((self._job(job) for job in self.trace), key=lambda job: (job.trace.submit_s, job.job_id))[::-1]
        self.down: dict[str, float] = {}  # node_id -> when it is back
        self.next_failure = {node.node_id: self._draw_failure(0.0) for node in self.cluster.nodes}

    def _job(self, trace: TraceJob) -> SimulatedJob:
        options, rng = self.options, self._job_rng
        job_type = self.job_types[trace.job_type]
        work_draw = float(rng.uniform(-1, 1))
        rate_draws = rng.standard_normal(16)
        types = sorted({node.gpu_type for node in self.cluster.nodes})
        factors = (
            {gpu: float(np.exp(options.rate_error * rate_draws[place])) for place, gpu in enumerate(types)} if options.rate_error else {}
        )
        return SimulatedJob(
            trace=trace,
            job_type=job_type,
            total_progress=job_type.training.total_progress * trace.work_scale,
            declared_factor=None if options.work_error is None else 1 + options.work_error * work_draw,
            rate_factors=factors,
            max_growth=options.max_growth,
        )

    def _draw_failure(self, now_s: float) -> float:
        mean = self.options.mean_hours_between_failures
        return math.inf if mean is None else now_s + float(self._node_rng.exponential(mean * 3600))

    def run(self) -> SimulationRun:
        idle_rounds = 0
        while self.waiting or self.active:
            if not self.active and self.waiting:  # skip to the round of the next arrival
                ahead = math.floor(self.waiting[-1].trace.submit_s / self.options.round_s) * self.options.round_s
                self.now_s = max(self.now_s, ahead)
            while self.waiting and self.waiting[-1].trace.submit_s <= self.now_s:
                job = self.waiting.pop()
                self.active[job.job_id] = job
            self._fail_and_repair()
            if self.active:
                self._plan()
                idle_rounds = 0 if self.current or self.down else idle_rounds + 1
                if idle_rounds * self.options.round_s > 3600 and not self.waiting:
                    raise GpuallocError(
                        f"{self.policy.name} leaves {len(self.active)} jobs waiting on an idle cluster, such as {next(iter(self.active))}; "
                        "do its counts and GPU types fit the cluster?"
                    )
            self._advance(self.options.round_s)
            if self.now_s > self.options.max_hours * 3600:
                raise GpuallocError(
                    f"{self.policy.name} has {len(self.active) + len(self.waiting)} jobs left after {self.options.max_hours:g} "
                    "simulated hours; give a larger cluster, fewer jobs or a higher limit"
                )
        return SimulationRun(
            policy=self.policy.name,
            jobs=tuple(self.finished[job.job_id] for job in self.trace),
            spans=tuple(self.spans),
            failures=tuple(self.failures),
            gpu_seconds_by_type=dict(sorted(self.gpu_seconds.items())),
            end_s=max(job.end_s for job in self.finished.values()),
            plan_seconds=tuple(self.plan_seconds),
        )

    def _fail_and_repair(self) -> None:
        for node in self.cluster.nodes:
            back_s = self.down.get(node.node_id)
            if back_s is not None and back_s <= self.now_s:
                del self.down[node.node_id]
                self.next_failure[node.node_id] = self._draw_failure(self.now_s)
            if self.next_failure[node.node_id] > self.now_s or node.node_id in self.down:
                continue
            self.failures.append((self.now_s, node.node_id))
            self.down[node.node_id] = self.now_s + self.options.repair_hours * 3600
            for job_id in [key for key, held in self.current.items() if any(name == node.node_id for name, _ in held.gpus_by_node)]:
                job = self.active[job_id]
                lost_s = min(self.options.checkpoint_s / 2, max(self.now_s - job.waits_until_s, 0.0))
                job.progress_done = max(job.progress_done - lost_s * job.true_rate(self.current[job_id]), 0.0)
                self._change(job, None)

    def _plan(self) -> None:
        nodes = self.cluster.nodes
        if self.down:
            nodes = tuple(node for node in nodes if node.node_id not in self.down)
        for job in self.active.values():
            job.now_s = self.now_s
        started = time.perf_counter()
        plan = self.policy.allocate(self.now_s, list(self.active.values()), Cluster(nodes=nodes), dict(self.current))
        self.plan_seconds.append(time.perf_counter() - started)
        check_plan(plan, self.active, nodes, self.policy.name)
        for job_id, job in self.active.items():
            if plan.get(job_id) != self.current.get(job_id):
                self._change(job, plan.get(job_id))

    def _change(self, job: SimulatedJob, to: Allocation | None) -> None:
        held = self.current.pop(job.job_id, None)
        if held is not None:
            start_s = self.since.pop(job.job_id)
            if self.now_s > start_s:
                self.spans.append(Span(job_id=job.job_id, allocation=held, start_s=start_s, end_s=self.now_s))
        if to is None:
            return
        if math.isnan(job.start_s):
            job.start_s = self.now_s
        else:
            job.num_restarts += 1
        job.waits_until_s = self.now_s + job.restart_cost_s
        job.most_gpus = max(job.most_gpus, to.num_gpus)
        self.current[job.job_id] = to
        self.since[job.job_id] = self.now_s

    def _advance(self, seconds: float) -> None:
        end_s, contention = self.now_s + seconds, len(self.active)
        for job_id, held in list(self.current.items()):
            job = self.active[job_id]
            rate = job.true_rate(held)
            begin_s = min(max(job.waits_until_s, self.now_s), end_s)
            left = job.total_progress - job.progress_done
            finish_s = begin_s + left / rate if rate > 0 else math.inf
            is_done = finish_s <= end_s
            used_s = min(finish_s, end_s) - self.now_s
            job.gpu_seconds += used_s * held.num_gpus
            self.gpu_seconds[held.gpu_type] = self.gpu_seconds.get(held.gpu_type, 0.0) + used_s * held.num_gpus
            job.progress_done = job.total_progress if is_done else job.progress_done + max(end_s - begin_s, 0.0) * rate
            if is_done:
                job.contention_s += contention * used_s
                self.spans.append(Span(job_id=job_id, allocation=held, start_s=self.since.pop(job_id), end_s=finish_s))
                del self.current[job_id], self.active[job_id]
                self._finish(job, finish_s)
        for job in self.active.values():
            job.contention_s += contention * seconds
        self.now_s = end_s

    def _finish(self, job: SimulatedJob, end_s: float) -> None:
        lifetime_s = end_s - math.floor(job.trace.submit_s / self.options.round_s) * self.options.round_s
        self.finished[job.job_id] = FinishedJob(
            job_id=job.job_id,
            job_type=job.trace.job_type,
            submit_s=job.trace.submit_s,
            start_s=job.start_s,
            end_s=end_s,
            num_restarts=job.num_restarts,
            gpu_seconds=job.gpu_seconds,
            mean_contention=max(job.contention_s / max(lifetime_s, 1e-9), 1.0),
            weight=job.trace.weight,
        )


def check_plan(plan: Plan, jobs: dict[str, SimulatedJob], nodes: Sequence[Node], policy: str) -> None:
    """Refuses a plan that could not be carried out.

    Raises:
        GpuallocError: it names a job or a node that is not there, or hands out more GPUs than a node has.
    """
    free = {node.node_id: node.num_gpus for node in nodes}
    type_of = {node.node_id: node.gpu_type for node in nodes}
    for job_id, held in plan.items():
        if job_id not in jobs:
            raise GpuallocError(f"{policy} plans for {job_id}, which is not waiting or running")
        for node, count in held.gpus_by_node:
            if type_of.get(node) != held.gpu_type:
                raise GpuallocError(f"{policy} puts {job_id} on {held.gpu_type} of node {node}, which is {type_of.get(node, 'not there')}")
            free[node] -= count
            if free[node] < 0:
                raise GpuallocError(f"{policy} hands out {-free[node]} GPUs more than node {node} has, the last to {job_id}")
