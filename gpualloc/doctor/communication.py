"""Settings that change how ranks talk and how long they wait: environment variables, NCCL's files, network interfaces, time-outs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpualloc.doctor.finding import Finding, judged

# NCCL user guide, "Environment variables": read after the environment, the system's first.
_NCCL_FILES = (Path("/etc/nccl.conf"), Path("~/.nccl.conf"))


@dataclass(frozen=True)
class Trap:
    """A variable that is easily left over, and what it then does."""

    name: str
    is_trap: Callable[[str], bool]
    effect: str


def _is_on(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false", "no", "off")


# NCCL user guide, "Environment variables"; PyTorch, "Distributed communication package" and "CUDA semantics" (read 2026-11).
TRAPS = (
    Trap("NCCL_P2P_DISABLE", _is_on, "GPUs do not reach each other: all goes through host memory"),
    Trap("NCCL_SHM_DISABLE", _is_on, "ranks of one node talk over the network"),
    Trap("NCCL_IB_DISABLE", lambda value: _is_on(value) and has_infiniband(), "InfiniBand is there and is not used"),
    Trap("NCCL_NET_GDR_LEVEL", lambda value: value.upper() in ("0", "LOC"), "no GPUDirect RDMA"),
    Trap("NCCL_ALGO", bool, "one algorithm for all sizes, where NCCL would choose"),
    Trap("NCCL_PROTO", bool, "one protocol for all sizes, where NCCL would choose (LL128 on the wrong hardware corrupts data)"),
    Trap("NCCL_MAX_NCHANNELS", lambda value: value in ("1", "2"), "hardly any channels, so a part of the bandwidth"),
    Trap("NCCL_NTHREADS", bool, "a number of threads that was tuned elsewhere"),
    Trap("NCCL_BUFFSIZE", bool, "a buffer size that was tuned elsewhere"),
    Trap("NCCL_LAUNCH_MODE", lambda value: value.upper() == "GROUP", "an old launch mode"),
    Trap("NCCL_CHECKS_DISABLE", lambda value: not _is_on(value), "arguments of every call are checked"),
    Trap("NCCL_DEBUG", lambda value: value.upper() in ("TRACE", "INFO"), "a flood of lines on stdout from every rank"),
    Trap("NCCL_HOSTID", bool, "ranks of one node may take each other for other hosts"),
    Trap("NCCL_BLOCKING_WAIT", _is_on, "the name of old torch versions, now TORCH_NCCL_BLOCKING_WAIT; each wait blocks the CPU"),
    Trap("TORCH_NCCL_BLOCKING_WAIT", _is_on, "each wait blocks the CPU, so that nothing overlaps"),
    Trap("TORCH_DISTRIBUTED_DEBUG", lambda value: value.upper() == "DETAIL", "every collective is checked by another one first"),
    Trap("CUDA_LAUNCH_BLOCKING", _is_on, "every kernel is waited for, so that nothing overlaps"),
    Trap("PYTORCH_NO_CUDA_MEMORY_CACHING", _is_on, "every tensor is a cudaMalloc"),
    Trap(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        lambda value: value == "1",
        "kernels and communication queue behind each other (meant for tensor parallelism)",
    ),
    Trap("PYTORCH_JIT", lambda value: value == "0", "torch.jit is off"),
    Trap("TORCH_COMPILE_DISABLE", _is_on, "torch.compile does nothing"),
)
_INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NOT_FOR_PEERS = ("docker", "br-", "virbr", "veth", "lo")


def check_nccl_environment() -> Finding:
    """Environment variables and files of NCCL that hold it, or torch, back."""
    settings = read_settings()
    warnings = [
        f"{trap.name}={settings[trap.name]}: {trap.effect}" for trap in TRAPS if trap.name in settings and trap.is_trap(settings[trap.name])
    ]
    others = [name for name in settings if name.startswith("NCCL_") and not any(text.startswith(name) for text in warnings)]
    seen = (
        f"{len(others)} harmless variables of NCCL ({', '.join(sorted(others)[:4])})"
        if others
        else "no other variable of NCCL"
        if warnings
        else "no variable of NCCL"
    )
    advice = "unset what nobody set on purpose: env | grep -E 'NCCL|TORCH|CUDA'; look into /etc/nccl.conf and ~/.nccl.conf, too"
    return judged("NCCL settings", seen, warnings=warnings, advice=advice)


def check_network_interfaces() -> Finding:
    """Interfaces named for NCCL and gloo exist and are up; this host's name leads to an address that others reach."""
    failures, warnings = [], []
    states = psutil.net_if_stats()
    for name in _INTERFACE_VARIABLES:
        wanted = os.environ.get(name, "")
        if not wanted or wanted.startswith("^"):
            continue
        is_exact = wanted.startswith("=")
        parts = wanted.removeprefix("=").split(",")
        found = [
            each
            for each in states
            if any(each == part or (not is_exact and name.startswith("NCCL") and each.startswith(part)) for part in parts)
        ]
        if not found:
            failures.append(f"{name}={wanted} names no interface; there are {', '.join(sorted(states))}")
        elif not any(states[each].isup for each in found):
            failures.append(f"{name}={wanted}: {', '.join(found)} is down")
        elif all(each.startswith(_NOT_FOR_PEERS) for each in found) and _is_on_several_nodes():
            warnings.append(f"{name}={wanted}: no other node is reached over {', '.join(found)}")
    set_ones = [name for name in _TORCHRUN_VARIABLES if name in os.environ]
    if set_ones and len(set_ones) < len(_TORCHRUN_VARIABLES):
        missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
        warnings.append(f"{', '.join(set_ones)} set and {', '.join(missing)} not: init_process_group fails or waits")
    address = _own_address()
    if address is not None and address.startswith("127.") and _is_on_several_nodes():
        warnings.append(f"this host's name leads to {address}, where other nodes do not find it")
    up = [each for each, state in states.items() if state.isup and not each.startswith(_NOT_FOR_PEERS)]
    fabric = "InfiniBand or RoCE" if has_infiniband() else "no InfiniBand"
    speeds = [f"{each} ({states[each].speed / 1e3:g} Gbit/s)" if states[each].speed else each for each in sorted(up)]
    seen = f"{', '.join(speeds) or 'loopback only'}; {fabric}"
    advice = "name an interface that leads to the other nodes (ip -brief link), set all of torchrun's variables or none, mend /etc/hosts"
    return judged("network", seen, failures=failures, warnings=warnings, advice=advice)


def check_timeouts() -> Finding:
    """How long a rank waits for one that does not answer, and whether it gives up at all."""
    settings = read_settings()
    warnings = []
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"):
        if settings.get(name) == "0":
            warnings.append(f"{name}=0: a collective whose peer is gone waits for ever")
    if settings.get("TORCH_NCCL_ENABLE_MONITORING") == "0":
        warnings.append("TORCH_NCCL_ENABLE_MONITORING=0: a process stuck inside NCCL is never ended")
    heartbeat = settings.get("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "")
    if heartbeat.isdecimal() and int(heartbeat) < 60:
        warnings.append(f"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC={heartbeat}: a slow start is taken for a stuck one")
    if settings.get("NCCL_IB_TIMEOUT", "20").isdecimal() and int(settings.get("NCCL_IB_TIMEOUT", "20")) < 18:
        warnings.append(f"NCCL_IB_TIMEOUT={settings['NCCL_IB_TIMEOUT']}, below the default: a busy fabric ends the job")
    advice = (
        "unset them; a shorter wait is init_process_group(timeout=timedelta(minutes=5)), as long as the slowest checkpoint or evaluation"
    )
    return judged("time-outs", _default_timeouts(), warnings=warnings, advice=advice)


def read_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment's variables, and those that NCCL's files set where the environment does not."""
    settings: dict[str, str] = {}
    for path in _NCCL_FILES:
        try:
            lines = path.expanduser().read_text(errors="replace").splitlines()
        except (OSError, RuntimeError):  # RuntimeError: nobody's home directory
            continue
        for line in lines:
            name, is_setting, value = line.partition("=")
            if is_setting and not name.lstrip().startswith("#"):
                settings[name.strip()] = value.strip()
    return {**settings, **(os.environ if environment is None else environment)}


def has_infiniband() -> bool:
    folder = Path("/sys/class/infiniband")
    return folder.is_dir() and any(folder.iterdir())


def _is_on_several_nodes() -> bool:
    nodes = os.environ.get("SLURM_NNODES") or os.environ.get("GROUP_WORLD_SIZE") or "1"
    master = os.environ.get("MASTER_ADDR", "localhost")
    return (nodes.isdecimal() and int(nodes) > 1) or master not in ("localhost", "127.0.0.1", "::1", socket.gethostname())


def _own_address() -> str | None:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _default_timeouts() -> str:
    from gpualloc.doctor.software import imported_torch

    if imported_torch() is None:
        return "torch does not import"
    from torch.distributed import constants

    waits = {"gloo": constants.default_pg_timeout, "nccl": getattr(constants, "default_pg_nccl_timeout", None)}
    told = ", ".join(f"{name} {wait.total_seconds() / 60:g} min" for name, wait in waits.items() if wait is not None)
    return f"torch's own unless a script sets others: {told}"
