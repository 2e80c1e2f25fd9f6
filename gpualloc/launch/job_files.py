"""Files for tools that start jobs themselves: Kubernetes with Kueue, SkyPilot, dstack. One function each makes the data of a file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.launch.engine import parse_options
from gpualloc.launch.job import Job
from gpualloc.launch.jobs import JobStore

_PORT = 29400  # torchrun's rendezvous on the first node: a pod, a virtual machine or a container of the job's own
_FOLDER = "/tmp/gpualloc"  # in a container: logs and progress

Make = Callable[[Job, Mapping[str, str]], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A job's file, and the command that hands it over."""

    name: str
    path: Path
    submit: str


class FileFormat:
    """Args:
    name: of the tool.
    make: the documents of a job's file.
    suffix: of the file's name.
    submit: the command that takes the file, with {path}.
    options: KEY=VALUE words.
    allowed: their names and what they mean.
    """

    def __init__(self, name: str, make: Make, *, suffix: str, submit: str, options: Sequence[str], allowed: Mapping[str, str]) -> None:
        self.name, self._make, self.suffix, self.submit = name, make, suffix, submit
        self._options = parse_options(name, options, allowed)

    def render(self, job: Job) -> str:
        """The file's text.

        Raises:
            UsageError: the job cannot be run there.
        """
        import yaml

        if job.is_cpu:
            raise UsageError(f"workload {job.name!r} is planned on cores; {self.name} is for GPUs, cores are for --engine local or slurm")
        return str(yaml.safe_dump_all(self._make(job, self._options), sort_keys=False, width=1000))


def kubernetes(options: Sequence[str]) -> FileFormat:
    """An indexed Job (batch/v1) and a headless Service through which its pods find the first one; with queue=, Kueue admits it whole."""
    allowed = {
        "image": "of the containers, with gpualloc and the script",
        "queue": "Kueue's LocalQueue",
        "namespace": "default: default",
        "gpu-product": "value of the node label nvidia.com/gpu.product",
        "volume": "a PersistentVolumeClaim for checkpoints and logs, mounted at /data",
    }
    return FileFormat("kubernetes", _kubernetes, suffix=".k8s.yaml", submit="kubectl apply -f {path}", options=options, allowed=allowed)


def skypilot(options: Sequence[str]) -> FileFormat:
    """A task; its nodes are of one cluster."""
    allowed = {
        "accelerator": "SkyPilot's name of the GPU, default the plan's",
        "infra": "where, such as aws/us-east-1 or k8s",
        "setup": "what to run first on each node",
        "spot": "true: spot instances, recovered by managed jobs",
    }
    return FileFormat("skypilot", _skypilot, suffix=".sky.yaml", submit="sky jobs launch --yes {path}", options=options, allowed=allowed)


def dstack(options: Sequence[str]) -> FileFormat:
    """A task."""
    allowed = {"gpu": "dstack's name of the GPU, default the plan's", "image": "of the container", "max-price": "of a node an hour"}
    return FileFormat("dstack", _dstack, suffix=".dstack.yml", submit="dstack apply --yes -f {path}", options=options, allowed=allowed)


FORMATS: dict[str, Callable[[Sequence[str]], FileFormat]] = {"kubernetes": kubernetes, "skypilot": skypilot, "dstack": dstack}


def write_files(made: FileFormat, jobs: Sequence[Job], folder: Path, state: Path) -> list[WrittenFile]:
    """Writes a file for each job and records it.

    Raises:
        UsageError: a job cannot be run there; nothing was written.
        GpuallocError: a file cannot be written.
    """
    texts = {job.name: made.render(job) for job in jobs}
    written = []
    with JobStore(state) as store:
        for job in jobs:
            path = folder / f"{_dns_name(job.name)}{made.suffix}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(texts[job.name])
            except OSError as error:
                raise GpuallocError(f"cannot write {path}: {error.strerror}; choose another folder with --output") from error
            submit = made.submit.format(path=shlex.quote(str(path)))
            assignment = asdict(job.assignment) if job.assignment is not None else {"workload": job.name}
            job_id = store.add(name=job.name, engine=made.name, folder=folder.absolute(), assignment=assignment)
            store.finish(job_id, "written", f"submit it with: {submit}")
            written.append(WrittenFile(name=job.name, path=path, submit=submit))
    return written


def _kubernetes(job: Job, options: Mapping[str, str]) -> list[dict[str, Any]]:
    name, namespace = _dns_name(job.name), options.get("namespace", "default")
    if "image" not in options:
        raise UsageError("Kubernetes runs images: name one that holds gpualloc and the script with -o image=REGISTRY/NAME:TAG")
    labels = {"app.kubernetes.io/managed-by": "gpualloc", "gpualloc/job": name}
    queue = {"kueue.x-k8s.io/queue-name": options["queue"]} if "queue" in options else {}
    container: dict[str, Any] = {
        "name": "train",
        "image": options["image"],
        "command": ["sh", "-c", _torchrun(job, "$JOB_COMPLETION_INDEX", f"{name}-0.{name}")],
        "env": [{"name": key, "value": value} for key, value in _settings(job).items()],
        "resources": {"limits": {"nvidia.com/gpu": job.devices_per_node}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # NCCL and readers share memory; a container has 64 MiB
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if "volume" in options:
        container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": options["volume"]}})
    selector = {"nodeSelector": {"nvidia.com/gpu.product": options["gpu-product"]}} if "gpu-product" in options else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"gpualloc/job": name}},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": namespace, "labels": {**labels, **queue}},
            "spec": {
                "completionMode": "Indexed",
                "completions": job.num_nodes,
                "parallelism": job.num_nodes,
                "backoffLimit": job.max_restarts * job.num_nodes,
                "suspend": bool(queue),  # Kueue resumes it when all pods fit
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "subdomain": name,
                        "restartPolicy": "Never",
                        "terminationGracePeriodSeconds": 60,  # to save a checkpoint
                        **selector,
                        "containers": [container],
                        "volumes": volumes,
                    },
                },
            },
        },
    ]


def _skypilot(job: Job, options: Mapping[str, str]) -> list[dict[str, Any]]:
    resources: dict[str, Any] = {"accelerators": f"{options.get('accelerator', job.gpu_type)}:{job.devices_per_node}"}
    if "infra" in options:
        resources["infra"] = options["infra"]
    if options.get("spot") == "true":
        resources["use_spot"] = True
    resources["job_recovery"] = {"strategy": "FAILOVER", "max_restarts_on_errors": job.max_restarts}
    head = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    return [
        {
            "name": _dns_name(job.name),
            "num_nodes": job.num_nodes,
            "resources": resources,
            "workdir": ".",
            "envs": _settings(job),
            "setup": options.get("setup", "pip install gpualloc"),
            "run": _torchrun(job, "$SKYPILOT_NODE_RANK", head),
        }
    ]


def _dstack(job: Job, options: Mapping[str, str]) -> list[dict[str, Any]]:
    task: dict[str, Any] = {
        "type": "task",
        "name": _dns_name(job.name),
        "nodes": job.num_nodes,
        "env": [f"{key}={value}" for key, value in _settings(job).items()],
        "commands": [_torchrun(job, "$DSTACK_NODE_RANK", "$DSTACK_MASTER_NODE_IP")],
        "resources": {"gpu": f"{options.get('gpu', job.gpu_type)}:{job.devices_per_node}", "shm_size": "16GB"},
    }
    if job.max_restarts:
        task["retry"] = {"on_events": ["no-capacity", "interruption", "error"], "duration": "1d"}
    if "image" in options:
        task["image"] = options["image"]
    if "max-price" in options:
        task["max_price"] = float(options["max-price"])
    return [task]


def _torchrun(job: Job, node_rank: str, head: str) -> str:
    """The node's command line, in a shell that knows `node_rank` and `head`; this machine's paths are not in it."""
    if job.is_bare:
        return shlex.join(job.command)
    first = job.command[0]
    command = job.command if not first.endswith(".py") else ("python", *job.command)
    nodes = f"--nnodes {job.num_nodes} --nproc-per-node {job.ranks_per_node}"
    where = "--standalone" if job.num_nodes == 1 else f'--node-rank "{node_rank}" --master-addr "{head}" --master-port {_PORT}'
    return f"torchrun {nodes} {where} --no-python {shlex.join(command)}"


def _settings(job: Job) -> dict[str, str]:
    settings = {**job.environment, **job.settings, "GPUALLOC_JOB_FOLDER": _FOLDER}
    if job.assignment is not None and job.assignment.checkpoint is not None:
        settings["GPUALLOC_CHECKPOINT"] = job.assignment.checkpoint  # as the plan has it: a place over there
    return settings


def _dns_name(name: str) -> str:
    """As Kubernetes wants names of pods' hosts: RFC 1123 labels, with room for an index."""
    made = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:50].strip("-")
    return made if made[:1].isalpha() else f"job-{made}".strip("-")
