"""Hosts on one machine: processes, hostname and network of their own, joined by a switch, and shared files.

What: Linux namespaces (unshare, nsenter, veth pairs, a bridge), which need root. Powering a host off kills all
that is in it at once. Where the machine has sshd and pdsh, a host can be reached by ssh.
Used by: test_clusters.py.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.launching import ROOT

INTERFACE = "eth0"
NAMESPACES = ("--net", "--pid", "--uts", "--mount")


@dataclass
class Host:
    """A host that runs; `init` is its first process, with which it ends."""

    name: str
    address: str
    init: psutil.Process

    def inside(self, *command: str) -> tuple[str, ...]:
        """The command line that runs a command on this host, from the repository's root."""
        # gloo asks the name server for its own address, which this host does not have
        environment = ("env", f"GLOO_SOCKET_IFNAME={INTERFACE}", f"PYTHONPATH={ROOT}")
        return ("nsenter", "--target", str(self.init.pid), *NAMESPACES, f"--wd={ROOT}", *environment, *command)

    def run(self, *command: str) -> str:
        """Run a command to its end; its output."""
        return subprocess.run(self.inside(*command), check=True, capture_output=True, text=True).stdout

    def power_off(self) -> None:
        """Kill everything in it at once."""
        self.init.kill()


def has_namespaces() -> bool:
    """Whether this machine lets us make hosts."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def start_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, 10.77.0.1 and 10.77.0.2."""
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(_start_host(f"host{number}", f"10.77.0.{number}")) for number in (1, 2)]
        switch = f"switch{os.getpid()}"
        _run("ip", "link", "add", switch, "type", "bridge")
        stack.callback(_run, "ip", "link", "delete", switch)
        _run("ip", "link", "set", switch, "up")
        for number, host in enumerate(hosts):
            here, there = f"h{os.getpid()}-{number}", f"p{os.getpid()}-{number}"
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            _run("ip", "link", "set", here, "master", switch, "up")
            _run("ip", "link", "set", there, "netns", str(host.init.pid), "name", INTERFACE)
            host.run("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                host.run("ip", "link", "set", interface, "up")
        yield hosts[0], hosts[1]


@contextlib.contextmanager
def _start_host(name: str, address: str) -> Iterator[Host]:
    options = (*NAMESPACES, "--fork", "--mount-proc", "--kill-child")
    holder = subprocess.Popen(["unshare", *options, "sh", "-c", f"hostname {name}; exec sleep infinity"])
    try:
        deadline = time.monotonic() + 10
        while not (children := psutil.Process(holder.pid).children()) or children[0].name() != "sleep":
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.05)
        yield Host(name, address, children[0])
    finally:
        holder.kill()  # and with it the host
        holder.wait()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def has_ssh() -> bool:
    """Whether this machine has what `deepspeed --hostfile` needs."""
    return all(shutil.which(program) for program in ("ssh", "sshd", "ssh-keygen", "pdsh"))


@contextlib.contextmanager
def reachable_by_ssh(hosts: tuple[Host, Host], folder: Path) -> Iterator[Path]:
    """Run sshd on both hosts; gives a folder that must come first in PATH, whose `ssh` knows the keys."""
    for key in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")
    settings = (
        f"HostKey={folder / 'host_key'}", f"AuthorizedKeysFile={folder / 'authorized_keys'}", "StrictModes=no",
        "PermitRootLogin=yes", "UsePAM=no", "PidFile=none",
    )  # fmt: skip
    programs = folder / "bin"
    programs.mkdir()
    client = ("-F", "none", "-i", str(folder / "user_key"), "-o", "StrictHostKeyChecking=no",
              "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")  # fmt: skip
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {" ".join(client)} "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd will not start without it
    options = [word for setting in settings for word in ("-o", setting)]
    servers = [
        subprocess.Popen(host.inside(str(shutil.which("sshd")), "-D", "-e", "-f", "/dev/null", *options),
                         stderr=(folder / f"{host.name}.log").open("w"))
        for host in hosts
    ]  # fmt: skip
    try:
        for host in hosts:
            _wait_for_port(host)
        yield programs
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait_for_port(host: Host) -> None:
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            host.run("python3", "-c", f"import socket; socket.create_connection(({host.address!r}, 22), 1)")
            return
        assert time.monotonic() < deadline, f"no sshd on {host.name}"
        time.sleep(0.1)
