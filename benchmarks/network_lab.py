"""A network of hosts on one machine: network namespaces joined by shaped virtual links, one core each.

    python benchmarks/network_lab.py up --hosts 2 --rate 1gbit
    python benchmarks/network_lab.py check
    python benchmarks/network_lab.py exec 0 -- python rank.py
    python benchmarks/network_lab.py down

Two hosts share one cable (a veth pair), more hang on a switch (a bridge in a namespace of its own). Nothing leads from these
namespaces to the machine or out of it. Every end of a cable sends at the lab's rate (`tc qdisc tbf`), so both directions have it
at once. Needs root and iproute2. See docs/network_lab.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.lab_streams import NAMESPACES, stream

PREFIX = "gpualloc-lab"  # of the namespaces: gpualloc-lab.NAME.0, .1, ... and gpualloc-lab.NAME.switch
INTERFACE = "lab0"  # of every host
UNLIMITED = "unlimited"
MAX_HOSTS = 16

_SWITCH = "switch"
_TIMEOUT_S = 10.0  # of one ip or tc command, and for processes in a lab to end
_BURST_S, _MIN_BURST_BYTES = 1e-3, 32 * 2**10  # tbf's bucket: what passes within 1 ms, and at least two packets of 16 KiB
_QUEUE_LATENCY = "20ms"  # what waits longer for tokens is dropped
_CHECK_S, _MAX_CHECK_BYTES = 1.5, 2**30


class LabError(Exception):
    """The lab cannot be built or used: what failed, what was seen, what to do."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What one TCP stream achieved, counted where it arrives."""

    source: int  # host
    target: int
    mbit_s: float


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A lab that is up."""

    name: str
    num_hosts: int
    rate_bit_s: float | None  # of each direction of each cable; None: not limited

    def command(self, host: int, command: list[str]) -> list[str]:
        """The command that runs `command` on a host, on that host's core; it becomes the command, so its process ID is the same.

        Hosts share cores where there are fewer cores than hosts.
        """
        if host not in range(self.num_hosts):
            raise LabError(f"lab {self.name!r} has no host {host}; choose one of 0 to {self.num_hosts - 1}")
        cores = sorted(os.sched_getaffinity(0))
        return ["ip", "netns", "exec", _namespace(self.name, host), "taskset", "-c", str(cores[host % len(cores)]), *command]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base`, with gloo on the lab's link."""
        return {**base, "GLOO_SOCKET_IFNAME": INTERFACE}

    def measure(self) -> list[Flow]:
        """One TCP stream from every host to the next one, the last to the first, all at once: the traffic of a ring all-reduce.

        Takes about 1.5 s, or as long as 1 GiB a stream.

        Raises:
            LabError: a stream did not end within 30 s.
        """
        num_bytes = _MAX_CHECK_BYTES if self.rate_bit_s is None else min(_MAX_CHECK_BYTES, round(self.rate_bit_s / 8 * _CHECK_S))
        with ThreadPoolExecutor(self.num_hosts) as pool:
            try:
                return list(pool.map(lambda source: self._stream(source, (source + 1) % self.num_hosts, num_bytes), range(self.num_hosts)))
            except OSError as error:
                raise LabError(f"lab {self.name!r}: a stream between hosts failed: {error}; take the lab down and up again") from error

    def _stream(self, source: int, target: int, num_bytes: int) -> Flow:
        server, client = _namespace(self.name, target), _namespace(self.name, source)
        return Flow(source=source, target=target, mbit_s=stream(client, server, _address(target), num_bytes) * 8 / 1e6)


def why_no_lab() -> str | None:
    """Why this machine, or this user, cannot have a lab; None where it can."""
    if sys.platform != "linux":
        return f"a network lab needs Linux, this is {sys.platform}"
    missing = [program for program in ("ip", "tc", "taskset") if shutil.which(program) is None]
    if missing:
        return f"a network lab needs {' and '.join(missing)}, not found in PATH; install iproute2 and util-linux"
    if os.geteuid() != 0:
        return f"a network lab needs root, this is user {os.geteuid()}; run it with sudo"
    try:
        _run("unshare", "--net", "true")
    except LabError as error:
        return f"a network lab needs network namespaces, not permitted here: {error}; in a container give it CAP_SYS_ADMIN"
    return None


@contextlib.contextmanager
def network_lab(num_hosts: int, rate: str, *, name: str = "lab") -> Iterator[Lab]:
    """`up`, and `down` at the end whatever happens."""
    lab = up(num_hosts, rate, name=name)
    try:
        yield lab
    finally:
        down(name)


def up(num_hosts: int, rate: str, *, name: str = "lab") -> Lab:
    """Builds a lab. One of that name in which nothing runs any more, as a crash leaves it, is replaced.

    Args:
        num_hosts: 2 to 16.
        rate: of each direction of each link, as tc writes it ("1gbit", "200mbit"), or "unlimited".

    Raises:
        LabError: it cannot be built; nothing of it is left.
    """
    lab = Lab(name=name, num_hosts=num_hosts, rate_bit_s=parse_rate(rate))
    if num_hosts not in range(2, MAX_HOSTS + 1):
        raise LabError(f"a lab of {num_hosts} hosts; choose 2 to {MAX_HOSTS}")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise LabError(f"lab name {name!r}; use small letters, digits and '-'")
    reason = why_no_lab()
    if reason is not None:
        raise LabError(reason)
    running = {namespace: pids for namespace in _namespaces(name) if (pids := _processes(namespace))}
    if running:
        raise LabError(
            f"a lab {name!r} is in use: {running} (namespace, process IDs); use another --name, or `down --name {name}` to end it"
        )
    down(name)
    try:
        _build(lab)
    except BaseException:
        down(name)
        raise
    return lab


def down(name: str) -> list[str]:
    """Takes the lab away, whatever state it is in: ends the processes in its namespaces (SIGTERM, then SIGKILL) and removes these,
    and with them the links. Returns the namespaces that were there."""
    namespaces = _namespaces(name)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline_s = time.monotonic() + _TIMEOUT_S
        for namespace in namespaces:
            for pid in _processes(namespace):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while any(map(_processes, namespaces)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
    with contextlib.ExitStack() as removals:  # one that fails leaves none of the others out
        for namespace in namespaces:
            removals.callback(_run, "ip", "netns", "delete", namespace)
    return namespaces


def find(name: str) -> Lab:
    """The lab of that name.

    Raises:
        LabError: it is not up.
    """
    hosts = [namespace for namespace in _namespaces(name) if not namespace.endswith(_SWITCH)]
    if not hosts:
        raise LabError(f"no lab {name!r} is up; `up --name {name} --hosts 2 --rate 1gbit` builds it")
    qdisc = json.loads(_run("tc", "-json", "-netns", _namespace(name, 0), "qdisc", "show", "dev", INTERFACE))[0]
    limited = qdisc["kind"] == "tbf"
    return Lab(name=name, num_hosts=len(hosts), rate_bit_s=qdisc["options"]["rate"] * 8 if limited else None)


def parse_rate(rate: str) -> float | None:
    """Bits per second of "200mbit" and the like; None for "unlimited".

    Raises:
        LabError: it is neither.
    """
    if rate == UNLIMITED:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    if match is None or float(match[1]) == 0:
        raise LabError(f"rate {rate!r}; write it as 200mbit, 1gbit, 10gbit or {UNLIMITED}")
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def _build(lab: Lab) -> None:
    hosts = [_namespace(lab.name, host) for host in range(lab.num_hosts)]
    for namespace in hosts:
        _run("ip", "netns", "add", namespace)
        _run("ip", "-netns", namespace, "link", "set", "lo", "up")
    if lab.num_hosts == 2:
        ends = [(namespace, INTERFACE) for namespace in hosts]
        _connect(*ends)
    else:
        ends = _build_switch(lab, hosts)
    for namespace, device in ends:
        _run("ip", "-netns", namespace, "link", "set", device, "addrgenmode", "none", "up")  # no IPv6, so no chatter on the link
        if lab.rate_bit_s is not None:
            rate, burst = f"{lab.rate_bit_s:.0f}bit", f"{max(_MIN_BURST_BYTES, lab.rate_bit_s / 8 * _BURST_S):.0f}"
            _run(*f"tc -netns {namespace} qdisc add dev {device} root tbf rate {rate} burst {burst} latency {_QUEUE_LATENCY}".split())
    for host, namespace in enumerate(hosts):
        address = _address(host)
        _run(*f"ip -netns {namespace} address add {address}/24 dev {INTERFACE} noprefixroute".split())
        # The machine's own congestion control may be one that paces by itself or fills no queue.
        _run(*f"ip -netns {namespace} route add {_address(-1)}/24 dev {INTERFACE} src {address} congctl cubic".split())


def _build_switch(lab: Lab, hosts: list[str]) -> list[tuple[str, str]]:
    """A bridge with a cable to each host. Returns both ends of every cable: (namespace, device)."""
    switch = _namespace(lab.name, _SWITCH)
    _run("ip", "netns", "add", switch)
    _run(*f"ip -netns {switch} link add switch type bridge stp_state 0 mcast_snooping 0".split())
    _run(*f"ip -netns {switch} link set switch addrgenmode none up".split())
    ends = []
    for host, namespace in enumerate(hosts):
        port = f"port{host}"
        _connect((namespace, INTERFACE), (switch, port))
        _run("ip", "-netns", switch, "link", "set", port, "master", "switch")
        ends += [(namespace, INTERFACE), (switch, port)]
    return ends


def _connect(a: tuple[str, str], b: tuple[str, str]) -> None:
    """A cable between two (namespace, device), made in place: no end of it is ever in the machine's own namespace."""
    _run(*f"ip link add {a[1]} netns {a[0]} type veth peer name {b[1]} netns {b[0]}".split())


def _namespace(name: str, host: int | str) -> str:
    return f"{PREFIX}.{name}.{host}"


def _namespaces(name: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{PREFIX}.{name}.*"))


def _address(host: int) -> str:
    return f"10.77.0.{host + 1}"  # in use only between the lab's own namespaces


def _processes(namespace: str) -> list[int]:
    try:
        return [int(pid) for pid in _run("ip", "netns", "pids", namespace).split()]
    except LabError:  # a crash while it was made left a name without a namespace
        return []


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def print_check(lab: Lab) -> None:
    """What every link achieves, beside the rate that is set."""
    for flow in lab.measure():
        of_set = "not limited" if lab.rate_bit_s is None else f"of {lab.rate_bit_s / 1e6:g} set: {flow.mbit_s * 1e6 / lab.rate_bit_s:.1%}"
        print(f"host {flow.source} -> host {flow.target}  {flow.mbit_s:8.1f} Mbit/s  {of_set}")


def main() -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="lab", help="several labs can be up at once (default: %(default)s)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("up", parents=[common], help="build a lab")
    build.add_argument("--hosts", type=int, default=2, help=f"2 to {MAX_HOSTS} (default: %(default)s)")
    build.add_argument("--rate", default="1gbit", help=f"of each direction of a link: 200mbit, 10gbit, {UNLIMITED} (default: %(default)s)")
    verbs.add_parser("down", parents=[common], help="end what runs in it and remove it")
    verbs.add_parser("check", parents=[common], help="measure the rate between hosts, all links at once")
    execute = verbs.add_parser("exec", parents=[common], help="run a command on a host, on one core: exec 0 -- COMMAND")
    execute.add_argument("host", type=int)
    execute.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    verb: Callable[[argparse.Namespace], None] = {"up": _up, "down": _down, "check": _check, "exec": _exec}[arguments.verb]
    try:
        verb(arguments)
    except LabError as error:
        print(f"network_lab: {error}", file=sys.stderr)
        return 1
    return 0


def _up(arguments: argparse.Namespace) -> None:
    lab = up(arguments.hosts, arguments.rate, name=arguments.name)
    print(f"lab {lab.name!r} is up: hosts {', '.join(_address(host) for host in range(lab.num_hosts))} at {arguments.rate}")


def _down(arguments: argparse.Namespace) -> None:
    print(f"removed: {', '.join(down(arguments.name)) or 'nothing, no such lab'}")


def _check(arguments: argparse.Namespace) -> None:
    print_check(find(arguments.name))


def _exec(arguments: argparse.Namespace) -> None:
    lab = find(arguments.name)
    command = [part for index, part in enumerate(arguments.command) if (index, part) != (0, "--")]
    if not command:
        raise LabError("exec: no command; write it after --, as in: exec 0 -- python rank.py")
    command = lab.command(arguments.host, command)
    os.execvpe(command[0], command, lab.environment(os.environ))


if __name__ == "__main__":
    sys.exit(main())
