"""A work dir has one owner: two trainings in one folder would overwrite each other's checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from addp_backbone.runtime.config_checks import LaunchError

OWNER_FILE = '.owner.json'
LAUNCH_VARIABLES = ('SLURM_JOB_ID', 'ADDP_LAUNCH_ID')  # one value for all attempts of a run that is started again
_BOOT_ID = Path('/proc/sys/kernel/random/boot_id')
_NAMESPACE = Path('/proc/self/ns/pid')  # containers count processes each from 1, and may share the host's name


@dataclass(frozen=True)
class Owner:
    """A process that trains in a work dir.

    Attributes:
        host: Its host.
        pid: Its process id.
        start: What tells it from a later process of the same id: boot and start time; '' where the system does not say.
        launch: Identifies the job that started it; '' if none did.
        since: When it took the folder, in local time.
        namespace: Within which its process id holds; '' where the system does not say.
    """

    host: str
    pid: int
    start: str
    launch: str
    since: str
    namespace: str = ''

    @classmethod
    def this_process(cls) -> Owner:
        """This process."""
        launch = next((os.environ[name] for name in LAUNCH_VARIABLES if os.environ.get(name)), '')
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), launch, since, _namespace())

    def is_alive(self, lock: Path) -> bool | None:
        """Whether it still runs; None if this host cannot tell.

        Args:
            lock: The file that names it, which it holds locked.
        """
        if self.host != socket.gethostname():
            return None
        if self.namespace and self.namespace != _namespace():  # its process id means nothing here
            return _is_locked(lock)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is somebody else's
        return self.start == _start_of(self.pid)  # also false for one that has ended and waits for its parent


@contextmanager
def owned(work_dir: str | Path) -> Iterator[None]:
    """Holds a work dir while training in it; a folder whose owner is dead is taken over.

    Args:
        work_dir: The folder; made if it does not exist.

    Raises:
        LaunchError: If another process trains there, or one of another host may.
    """
    path = Path(work_dir) / OWNER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    me = Owner.this_process()
    with ExitStack() as held:
        _take(path, me, held)
        try:
            yield
        finally:
            if read_owner(path) == me:
                path.unlink(missing_ok=True)


def _take(path: Path, me: Owner, held: ExitStack) -> None:
    """Writes the lock file in place of a dead owner's, and holds it locked."""
    with _turn(path.parent):
        while not _create(path, me):
            other = read_owner(path)
            if other is not None:  # else it has just ended, or left a damaged file
                _check_gone(other, me, path)
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR)
        held.callback(os.close, descriptor)
        with suppress(OSError):  # some network file systems have no locks; then process ids alone tell
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_owner(path: Path) -> Owner | None:
    """Who a lock file names; None if there is no file, or not a whole one."""
    try:
        owner = Owner(**json.loads(path.read_text(encoding='utf-8')))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    return owner if type(owner.pid) is int and 0 < owner.pid < 2**31 else None


def _check_gone(other: Owner, me: Owner, path: Path) -> None:
    """Raises LaunchError unless the owner is dead, or an earlier attempt of this very job on another host."""
    alive = other.is_alive(path)
    who = f'process {other.pid} on host {other.host} since {other.since}'
    if alive:
        raise LaunchError(
            f'{path.parent} is in use by another training, {who}. Wait for it, end it, or choose another --work-dir'
        )
    if alive is None and not (other.launch and other.launch == me.launch):
        raise LaunchError(
            f'{path.parent} belongs to {who}, and this host ({me.host}) cannot tell whether that still runs. If it '
            f'does, choose another --work-dir; if not, remove {path} and start again'
        )


def _create(path: Path, owner: Owner) -> bool:
    """Writes the lock unless there is one: the whole file appears at once, on network file systems too."""
    text = json.dumps(asdict(owner)) + '\n'
    draft = path.with_name(f'{path.name}.{owner.host}.{owner.pid}')
    draft.write_text(text, encoding='utf-8')
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        with suppress(FileExistsError), path.open('x', encoding='utf-8') as file:
            file.write(text)
            return True
        return False
    finally:
        draft.unlink()
    return True


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Lets processes look at a dead owner's lock one after the other, lest two take it over."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders; then only this moment is unguarded
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_locked(path: Path) -> bool | None:
    """Whether a process of this machine, in whatever container, holds a file locked; None where files have no locks."""
    try:
        with path.open('r+', encoding='utf-8') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _namespace() -> str:
    try:
        return str(_NAMESPACE.readlink())
    except OSError:
        return ''


def _start_of(pid: int) -> str:
    try:
        fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()
        if fields[0] == 'Z':
            return 'ended'
        return f'{_BOOT_ID.read_text(encoding="utf-8").strip()} {fields[19]}'
    except OSError:
        return ''
