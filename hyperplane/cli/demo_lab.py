"""What the demo stands on: namespaces, and processes in them. Everything that is made is removed by `Lab.close()`.

Methods block: call them in threads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from hyperplane.errors import DeviceError, HyperplaneError, PermissionMissing
from hyperplane.linux.namespaces import NETNS_RUN_DIR, NamespaceThreads, open_namespace

PREFIX: Final = "hpdemo-"
# A namespace's name (label, number of the process) or a temporary directory's (number, something random).
OURS: Final = re.compile(rf"{PREFIX}(?:[a-z]+\d*-(?P<pid>\d+)$|(?P<owner>\d+)-)")
STATUS = "/proc/self/status"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # not in everybody's PATH, but `ip` and `nft` are there
DEADLINE: Final = 180.0  # seconds for what takes a moment: an emulated machine that is busy may need most of them
PAUSE: Final = 0.02  # seconds between two looks at a condition
NET_ADMIN, SYS_ADMIN = 12, 21  # linux/capability.h

Command = Sequence[str]


def find(program: str) -> str:
    """Its path, "" when it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}") or ""


def check_privileges() -> None:
    """Raises PermissionMissing or DeviceError, in words for somebody who has just met the program."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path(STATUS).read_text(encoding="ascii"), re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    if not (effective >> NET_ADMIN & 1 and effective >> SYS_ADMIN & 1):
        needs = "the demo makes network namespaces and TUN devices, so it needs CAP_NET_ADMIN and CAP_SYS_ADMIN"
        raise PermissionMissing(needs, remedy="run it as root: sudo make demo, or sudo hyperplane-nat demo")
    if not os.path.exists("/dev/net/tun"):
        remedy = "load the module (modprobe tun), or give the container /dev/net/tun"
        raise PermissionMissing("the demo makes TUN devices, and /dev/net/tun is not there", remedy=remedy)
    if not find("ip"):
        raise DeviceError("the demo makes namespaces with `ip`, and that is not installed", remedy="install iproute2")


class Lab:
    """Namespaces are named hpdemo-LABEL-PID; a label stands for its namespace in all methods."""

    def __init__(self) -> None:
        self.ip = find("ip")
        self._undo = ExitStack()
        self._threads = NamespaceThreads(4)
        self._undo.callback(self._threads.close)
        # Ends a process when we are killed ourselves; without it only the namespaces' names are left then.
        setpriv = find("setpriv")
        self._until_we_end = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()

    def close(self) -> None:
        """Raises HyperplaneError when something could not be removed; the rest is removed nevertheless."""
        self._undo.close()

    # Namespaces

    @staticmethod
    def name(label: str) -> str:
        return f"{PREFIX}{label}-{os.getpid()}"

    def add_namespace(self, label: str) -> None:
        name = self.name(label)
        self._undo.callback(self._remove_namespace, name)
        self.command([self.ip, "netns", "add", name])
        self.command([self.ip, "-n", name, "link", "set", "lo", "up"])

    def _remove_namespace(self, name: str) -> None:
        if os.path.exists(f"{NETNS_RUN_DIR}/{name}"):
            self.command([self.ip, "netns", "del", name])

    def remove_left_over(self) -> None:
        """What demos that were killed have left: nobody else will remove it."""
        for directory in (NETNS_RUN_DIR, tempfile.gettempdir()):
            for name in os.listdir(directory) if os.path.isdir(directory) else ():
                match = OURS.match(name)
                if not match or os.path.exists(f"/proc/{match['pid'] or match['owner']}"):
                    continue
                if directory == NETNS_RUN_DIR:
                    self._remove_namespace(name)
                else:
                    shutil.rmtree(os.path.join(directory, name), ignore_errors=True)

    def inside(self, label: str, job: Callable[[], Any]) -> Any:
        """Runs job in a thread that is in the namespace, as are the processes that it starts."""

        def run() -> Any:
            with open_namespace(self.name(label)) as namespace, self._threads.inside(namespace.fd):
                return job()

        return self._threads.submit(run).result()

    # Processes

    def command(self, command: Command, *, text: str = "", label: str = "") -> str:
        """Runs a command to its end, in a namespace when label is given; returns its output. text: its input.

        Raises HyperplaneError with what it said.
        """
        program = os.path.basename(command[0])

        def run() -> subprocess.CompletedProcess[str]:
            # A group of its own: Ctrl-C on the terminal is for us, who let it come to its end.
            return subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=DEADLINE, process_group=0, check=False
            )

        try:
            done: subprocess.CompletedProcess[str] = self.inside(label, run) if label else run()
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HyperplaneError(f"{program}: {error}", resource=program) from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
            raise HyperplaneError(f"`{program} {' '.join(command[1:4])}` failed: {said}", resource=program)
        return done.stdout

    def start(
        self, label: str, command: Command, *, end: signal.Signals = signal.SIGTERM, **options: Any
    ) -> subprocess.Popen[str]:
        """Starts a process in a namespace, or in this one; `end` is the signal that asks it to go."""

        def run() -> subprocess.Popen[str]:
            return subprocess.Popen([*self._until_we_end, *command], text=True, process_group=0, **options)

        try:
            process: subprocess.Popen[str] = self.inside(label, run) if label else run()
        except OSError as error:
            raise HyperplaneError(f"{command[0]}: {error.strerror}", resource=command[0]) from None
        self._undo.callback(_end, process, end)
        return process

    def start_talker(self, label: str, command: Command) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Starts a process that says one line of JSON; returns it with that line. It ends when its input does."""
        process = self.start(label, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            _, said = process.communicate(timeout=DEADLINE)
            raise HyperplaneError(f"`{' '.join(command)}` failed: {said.strip()[-200:]}", resource=command[0])
        fields: dict[str, Any] = json.loads(line)
        return process, fields

    def finally_do(self, job: Callable[..., object], *arguments: Any) -> None:
        """By close(), before whatever was made earlier is removed."""
        self._undo.callback(job, *arguments)

    def directory(self, owner: str) -> Path:
        """A temporary directory that belongs to a user."""
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._undo.callback(shutil.rmtree, path, ignore_errors=True)
        shutil.chown(path, owner)
        return path


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Polls until condition() is true; False when the process ended or DEADLINE passed before."""
    end = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(PAUSE)
    return False


def _end(process: subprocess.Popen[str], asked: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(asked)
    try:
        process.wait(DEADLINE / 4)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
