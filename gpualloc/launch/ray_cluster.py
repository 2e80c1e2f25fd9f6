"""The Ray engine: an atomic placement group for every job, and in each of its bundles an actor that runs torchrun.

An actor dies with the driver, which is this process, and torchrun with the actor: a Ray cluster is left as it was found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpualloc.errors import UsageError
from gpualloc.launch.engine import (
    Ended,
    EngineLostError,
    agent_log,
    attempt_folder,
    job_environment,
    parse_options,
    python_path,
    shell_lines,
)
from gpualloc.launch.job import Job
from gpualloc.launch.local import describe_failure
from gpualloc.launch.torchrun import Meeting, guarded, node_command

_OPTIONS = {
    "address": "of the cluster, default auto",
    "lost-after": "seconds that a node may take to answer, default 60",
    "cpus-per-gpu": "cores to reserve beside each GPU, default 1",
}
_ANSWER_S = 5.0  # how long a node is waited for before it is asked whether the cluster is there at all
_MEETING = Meeting(node_rank="NODE", head="HEAD", port="PORT")  # in what is printed; found when the job starts


class RayEngine:
    """Starts jobs on a Ray cluster that runs already.

    Args:
        options: KEY=VALUE words, as `_OPTIONS` names them.
    """

    name = "ray"

    def __init__(self, options: Sequence[str]) -> None:
        given = parse_options("ray", options, _OPTIONS)
        self._address = given.get("address", "auto")
        self._lost_after_s = float(given.get("lost-after", "60"))
        self._cpus_per_gpu = int(given.get("cpus-per-gpu", "1"))
        self._ray: Any = None

    def leased_devices(self, job: Job) -> tuple[str, ...]:
        return ()

    def bundles(self, job: Job) -> tuple[list[dict[str, float]], str]:
        """(what each node gives, how they are spread)."""
        count = job.devices_per_node
        bundle = {"CPU": float(count)} if job.is_cpu else {"GPU": float(count), "CPU": float(count * self._cpus_per_gpu)}
        return [dict(bundle) for _ in range(job.num_nodes)], "STRICT_SPREAD" if job.num_nodes > 1 else "STRICT_PACK"

    def render(self, job: Job, folder: Path) -> str:
        bundles, strategy = self.bundles(job)
        command = node_command(job, attempt=1, meeting=_MEETING if job.num_nodes > 1 else None)
        text = shell_lines(_environment(job, folder, 1), guarded(command))
        return f"placement group: bundles={bundles}, strategy={strategy!r}\nin each bundle, an actor that runs:\n{text}"

    def start(self, job: Job, folder: Path, attempt: int) -> RayAttempt:
        ray = self._connect()
        bundles, strategy = self.bundles(job)
        total = ray.cluster_resources()
        for name in bundles[0]:
            wanted = sum(bundle[name] for bundle in bundles)
            if total.get(name, 0.0) < wanted:
                raise UsageError(
                    f"workload {job.name!r} wants {wanted:g} {name} and the Ray cluster has {total.get(name, 0.0):g}; plan again"
                )
        from ray.util.placement_group import placement_group

        group = placement_group(bundles, strategy=strategy, name=f"gpualloc {job.name}")
        return RayAttempt(ray, group, bundles, job, folder, attempt, lost_after_s=self._lost_after_s)

    def _connect(self) -> Any:
        if self._ray is not None:
            return self._ray
        try:
            import ray
        except ImportError:
            raise EngineLostError(
                "Ray is not installed here; run: pip install 'gpualloc[ray]', or see what would run with --dry-run"
            ) from None
        _refuse_silence(self._address)
        try:
            ray.init(address=self._address, log_to_driver=False, configure_logging=False, namespace="gpualloc")
        except ConnectionError as error:
            raise EngineLostError(f"no Ray cluster answers at {self._address!r}: {error}; start one with: ray start --head") from error
        self._ray = ray
        return ray


def _refuse_silence(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        EngineLostError: nothing listens at "host:port".
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise EngineLostError(f"no Ray cluster answers at {address!r}: {error}; start one with: ray start --head") from error


class RayAttempt:
    """A placement group, its actors once it is ready, and how their torchruns end."""

    def __init__(
        self, ray: Any, group: Any, bundles: Sequence[dict[str, float]], job: Job, folder: Path, attempt: int, *, lost_after_s: float
    ) -> None:
        self._ray, self._group, self._bundles = ray, group, bundles
        self._job, self._folder, self._attempt = job, folder, attempt
        self._lost_after_s = lost_after_s
        self._actors: list[Any] = []
        self._is_over = False
        self._answered_s = time.monotonic()
        self.reference = f"placement group {group.id.hex()[:12]}"

    def poll(self) -> Ended | None:
        try:
            return self._poll()
        except EngineLostError:
            self._is_over = True  # nobody is there to be told to end it
            raise

    def _poll(self) -> Ended | None:
        try:
            if not self._actors:
                if not self._group.wait(timeout_seconds=0.01):
                    return None  # others have the resources
                self._begin()
            codes = self._ray.get([actor.poll.remote() for actor in self._actors], timeout=min(_ANSWER_S, self._lost_after_s))
            self._answered_s = time.monotonic()
        except self._ray.exceptions.GetTimeoutError as error:
            self._refuse_silence()
            if time.monotonic() - self._answered_s < self._lost_after_s:
                return None
            raise EngineLostError(f"a node of the Ray cluster did not answer for {self._lost_after_s:g} s; see: ray status") from error
        except self._ray.exceptions.RayActorError as error:
            self._refuse_silence()
            return Ended(is_ok=False, message=f"a node of the Ray cluster is gone: {str(error).splitlines()[0]}")
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise EngineLostError(f"the Ray cluster does not answer: {str(error).splitlines()[0]}; see: ray status") from error
        failed = next((code for code in codes if code not in (None, 0)), None)
        if failed is not None:
            return self._describe(failed, codes.index(failed))
        return Ended(is_ok=True) if all(code == 0 for code in codes) else None

    def _refuse_silence(self) -> None:
        """Ray itself would wait for its head for a minute, and then end this process."""
        _refuse_silence(self._ray.get_runtime_context().gcs_address)

    def process_ids(self) -> Iterable[int]:
        return ()  # Ray's own

    def terminate(self) -> None:
        if self._is_over:
            return
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.get([actor.terminate.remote() for actor in self._actors], timeout=self._lost_after_s)

    def kill(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError, ValueError):
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.get([actor.kill.remote() for actor in self._actors], timeout=self._lost_after_s)
            for actor in self._actors:
                self._ray.kill(actor)
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(self._group)

    def _begin(self) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        make = self._ray.remote(_Node)
        environment = _environment(self._job, self._folder, self._attempt)
        self._actors = [
            make.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0.0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
                runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
            ).remote()
            for index, bundle in enumerate(self._bundles)
        ]
        head, port = self._ray.get(self._actors[0].find_endpoint.remote())
        starts = []
        for node, actor in enumerate(self._actors):
            meeting = Meeting(node_rank=str(node), head=head, port=str(port)) if self._job.num_nodes > 1 else None
            command = node_command(self._job, attempt=self._attempt, meeting=meeting)
            starts.append(actor.start.remote(command, environment, str(self._log(node))))
        self._ray.get(starts)

    def _log(self, node: int) -> Path:
        """Of a node's torchrun; the first node's is the job's."""
        path = agent_log(self._folder, self._attempt)
        return path if node == 0 else path.with_name(f"agent{node}.log")

    def _describe(self, code: int, node: int) -> Ended:
        """Each node's torchrun knows of its own ranks; one that only saw others leave names none."""
        ends = [describe_failure(self._log(index), code) for index in range(len(self._actors))]
        return next((ended for ended in ends if ended.rank is not None), ends[node])


class _Node:
    """Runs in a process of Ray's on a node: the node's torchrun."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def find_endpoint(self) -> tuple[str, int]:
        """An address of this node and a port that is free there."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return address, int(free.getsockname()[1])

    def start(self, command: list[str], environment: dict[str, str], log: str) -> None:
        os.makedirs(os.path.dirname(log), exist_ok=True)
        own = {**os.environ, **environment, "GPUALLOC_GUARD_PARENT": str(os.getpid())}
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                guarded(command), env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def poll(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def terminate(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends torchrun, and the kernel its ranks."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            time.sleep(0.1)


def _environment(job: Job, folder: Path, attempt: int) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES is Ray's."""
    environment = {**job_environment(job, folder), "OMP_NUM_THREADS": "1"}
    if job.is_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if not job.is_bare:
        environment["GPUALLOC_LOG_FOLDER"] = str(attempt_folder(folder, attempt).absolute())
    return environment
