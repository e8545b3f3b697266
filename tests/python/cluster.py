"""A cluster under test: a group daemon, and nodes that replicate.

    with cluster.Cluster(directory) as c:
        c.start()
        primary = c.wait_primary()
        c.kill(primary)

All that it begins has ended when the block is left. Every wait is bounded. Nodes are what
`$SERVER_BIN` says, as in server.py; groupd is the one beside it.
"""
import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

from ZEO.asyncio.marshal import decoder
from ZEO.asyncio.marshal import encoder
from ZODB.FileStorage import FileIterator

import server

NAMES = ('alpha', 'beta', 'gamma')
PATIENCE = 60           # seconds for anything that a cluster does by itself
PR_SET_PDEATHSIG = 1


def die_with_us():
    """A child ends with its parent, even if that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Groupd:
    """The daemon of one machine that stands in for Spread; it parts the nodes on command."""

    can_part = True

    def __init__(self, directory):
        self.directory = directory
        self.port = server.free_port()
        self.log = os.path.join(directory, 'groupd.log')
        self.program = os.path.join(os.path.dirname(server.command()[0]), 'groupd')
        self.control = os.path.join(directory, 'groupd.sock')
        self.process = None

    @property
    def name(self):
        """As <standby> has it."""
        return 'spread %d@127.0.0.1' % self.port

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.control)
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(
                [self.program, '--listen', '127.0.0.1:%d' % self.port, '--control', self.control],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_us)
        server.eventually(lambda: self.accepts(), PATIENCE)

    def accepts(self):
        if self.process.poll() is not None:
            raise AssertionError('groupd ended with status %s' % self.process.returncode)
        with contextlib.suppress(OSError):
            server.dial(self.control).close()
            return True
        return False

    def tell(self, *words):
        """One command; its answer."""
        done = subprocess.run(
            [self.program, '--tell', self.control, *words], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
            universal_newlines=True)
        if done.returncode:
            raise AssertionError('groupd: %s: %s' % (' '.join(words), done.stdout.strip()))
        return done.stdout

    def partition(self, *parts):
        self.tell('partition', *(','.join(part) for part in parts))

    def merge(self):
        self.tell('merge')

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class OtherDaemon:
    """One that runs already, and that we have no power over."""

    can_part = False

    def __init__(self, name):
        self.name = name

    def start(self):
        pass

    def kill(self):
        pass


class Node:
    """One server of the cluster, in a directory of its own."""

    def __init__(self, name, directory, host='127.0.0.1', wrapper=()):
        self.name = name
        self.directory = directory
        self.wrapper = list(wrapper)    # words before the command
        self.process = None
        self.is_stopped = False         # by SIGSTOP
        self.log = directory + '.log'   # outside, so that a lost disk does not take it
        self.address, self.read_address, self.peer_address, self.admin_address = (
            (host, server.free_port()) for _ in range(4))
        os.makedirs(directory, exist_ok=True)

    def write_configuration(self, lines):
        path = os.path.join(self.directory, 'zeo.conf')
        with open(path, 'w') as f:
            f.write('\n'.join(lines) + '\n')
        return path

    def launch(self, lines):
        """Start, and wait for nothing."""
        assert self.process is None, '%s runs' % self.name
        conf = self.write_configuration(lines)
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(
                self.wrapper + server.command() + ['-C', conf], cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_us)
        self.is_stopped = False

    @property
    def runs(self):
        return self.process is not None and not self.is_stopped

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """kill -9"""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reap(self):
        """The exit status of a node that has ended by itself, or None."""
        if self.process is None or self.process.poll() is None:
            return None
        status, self.process = self.process.returncode, None
        return status

    def output(self, lines=40):
        try:
            with open(self.log, errors='replace') as f:
                return ''.join(f.readlines()[-lines:])
        except OSError:
            return ''

    def asked(self, path):
        """The status code and body of a page of admin-address; None if there is none."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            with server.dial(self.admin_address, 20) as s:
                s.sendall(b'GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
                          % path.encode())
                with s.makefile('rb') as f:
                    answer = f.read()
            head, _, body = answer.partition(b'\r\n\r\n')
            return int(head.split()[1]), body
        return None

    def last_tid(self, read_only=False):
        """The last transaction that it serves, to those that write or to those that read."""
        return last_tid(self.read_address if read_only else self.address, read_only)

    def is_primary(self):
        return self.runs and self.last_tid() is not None

    @property
    def data(self):
        return os.path.join(self.directory, 'Data.fs')


def last_tid(address, read_only, timeout=None):
    """What a client at *address* is told after it has registered; None if it gets nowhere.

    Who waits for a primary is at times greeted, registered, and sent away; so it takes one call
    more.
    """
    timeout = timeout or (2 if read_only else .3)
    try:
        with server.dial(address, timeout) as s:
            greeting = receive(s)
            s.settimeout(2)
            send(s, greeting[:1] + b'5')
            encode, decode = encoder(greeting, False), decoder(greeting)
            for number, call in enumerate([('register', ('1', read_only)),
                                           ('lastTransaction', ())]):
                send(s, encode(number, False, *call))
                while True:
                    answer = decode(receive(s))
                    if answer[0] == number and answer[2] == '.reply':
                        break
                if answer[1] or not isinstance(answer[3], bytes):
                    return None
            return answer[3]
    except (OSError, EOFError):
        return None


def send(s, message):
    s.sendall(struct.pack('>I', len(message)) + message)


def receive(s):
    return exactly(s, struct.unpack('>I', exactly(s, 4))[0])


def exactly(s, count):
    result = b''
    while len(result) < count:
        got = s.recv(count - len(result))
        if not got:
            raise EOFError
        result += got
    return result


class Cluster:

    def __init__(self, directory, nodes=3, daemon='groupd', lease='1s', blobs=True, wrappers=None,
                 hosts=None, **options):
        """*options* are keys of <standby>, the same for all, or dicts by the nodes' names."""
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.daemon = Groupd(directory) if daemon == 'groupd' else OtherDaemon(daemon)
        self.group = 't%d' % server.free_port()     # an other daemon may have others' groups
        self.options = dict(options, lease=lease)
        self.sections = {}      # lines of sections in <standby>, by the nodes' names
        self.blobs = blobs
        self.limited = []       # nodes with file systems of their own
        self.key = os.path.join(directory, 'group.key')
        with open(self.key, 'w') as f:
            f.write('not a secret, as this is a test\n')
        self.nodes = [
            Node(name, os.path.join(directory, name), (hosts or {}).get(name, '127.0.0.1'),
                 (wrappers or {}).get(name, ()))
            for name in NAMES[:nodes]]

    def __enter__(self):
        return self

    def __exit__(self, kind, value, _):
        if kind is not None:
            self.show_output()
        self.kill_all()
        self.daemon.kill()
        for node in self.limited:
            subprocess.run(['umount', node.directory], stderr=subprocess.DEVNULL)

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    @property
    def addresses(self):
        return [node.address for node in self.nodes]

    @property
    def read_addresses(self):
        return [node.read_address for node in self.nodes]

    # --- starts and stops

    def start(self, order=NAMES, pause=0):
        """The daemon, and the nodes in this order."""
        self.daemon.start()
        for name in order:
            if name in [node.name for node in self.nodes]:
                self.restart(self.node(name))
                time.sleep(pause)

    def configuration(self, node):
        lines = ['<zeo>', 'address %s:%d' % node.address, 'client-conflict-resolution true',
                 '</zeo>', '<filestorage 1>', 'path ' + node.data]
        # With their whole names, as who enters a namespace leaves its directory.
        lines += ['blob-dir ' + os.path.join(node.directory, 'blobs')] * self.blobs
        lines += ['</filestorage>', '<standby>', 'node ' + node.name, 'group ' + self.group,
                  'daemon ' + self.daemon.name, 'key-file ' + self.key,
                  'voters ' + ' '.join(n.name for n in self.nodes), 'journal-size 64MB']
        for key in 'read', 'peer', 'admin':
            lines.append('%s-address %s:%d' % ((key,) + getattr(node, key + '_address')))
        for key, value in self.options.items():
            value = value.get(node.name) if isinstance(value, dict) else value
            if value is not None:
                lines.append('%s %s' % (key.replace('_', '-'), value))
        return lines + self.sections.get(node.name, []) + ['</standby>']

    def restart(self, node):
        """Start a node that does not run."""
        node.launch(self.configuration(node))

    def kill(self, node):
        """kill -9"""
        self.alive(node)
        node.kill()

    def kill_all(self):
        for node in self.nodes:
            node.kill()

    def stop(self, node):
        """SIGSTOP"""
        node.signal(signal.SIGSTOP)
        node.is_stopped = True

    def cont(self, node):
        """SIGCONT"""
        node.is_stopped = False
        node.signal(signal.SIGCONT)

    def stop_all(self):
        """SIGTERM to all; complaints about those that do not end in good order."""
        running = [node for node in self.nodes if node.process is not None]
        for node in running:
            node.signal(signal.SIGTERM)
            self.cont(node)
        complaints = []
        for node in running:
            try:
                status = node.process.wait(30)
            except subprocess.TimeoutExpired:
                status = 'none: it did not stop'
            if status != 0:
                complaints.append('%s: exit status %s' % (node.name, status))
            node.kill()
        for node in self.nodes:
            if 'panicked at' in node.output(100000):
                complaints.append('%s: a thread panicked' % node.name)
        return complaints

    def wipe(self, node):
        """All that a node has is lost."""
        assert node.process is None
        for name in os.listdir(node.directory):
            path = os.path.join(node.directory, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.remove(path)

    def ctl(self, node, *words):
        """standbyctl; its exit status and what it says."""
        program = os.path.join(os.path.dirname(server.command()[0]), 'standbyctl')
        done = subprocess.run(
            [program, '--socket', os.path.join(node.directory, 'standby', 'admin.sock'), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=PATIENCE, universal_newlines=True)
        return done.returncode, done.stdout.strip()

    def command(self, node, *words):
        """What standbyctl says, which has to have done it."""
        status, output = self.ctl(node, *words)
        if status:
            raise AssertionError('standbyctl %s ended with status %d: %s' % (
                ' '.join(words), status, output))
        return output

    def status(self, node):
        """How things are with a node, or None."""
        status, output = self.ctl(node, 'status', '--json')
        return None if status else json.loads(output)

    # --- networks and disks

    def partition(self, *parts):
        """Nodes hear those of their own part only, as far as they are there."""
        parts = [[node.name for node in part if node.process] for part in parts]
        self.daemon.partition(*(part for part in parts if part))

    def merge(self):
        self.daemon.merge()

    def limit_disk(self, node, size):
        """Before it is started: give a node a file system of so many bytes of its own.

        A tmpfs, which this process can only mount in a mount namespace where it may; see
        `own_mounts`.
        """
        done = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=%d' % size, 'tmpfs', node.directory],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        if done.returncode:
            raise AssertionError('mount: ' + done.stdout)
        self.limited.append(node)

    def fill_disk(self, node):
        """Leave no room in the file system that `limit_disk` has made."""
        with open(os.path.join(node.directory, 'filler'), 'wb', buffering=0) as f:
            size = 1 << 20
            while size >= 1:
                try:
                    f.write(b'\0' * size)
                except OSError:
                    size >>= 1

    def free_disk(self, node):
        os.remove(os.path.join(node.directory, 'filler'))

    # --- what is to be seen

    def alive(self, *nodes):
        """None of these, or of all that we have not killed, has ended by itself."""
        for node in nodes or self.nodes:
            if node.process is not None and node.process.poll() is not None:
                raise AssertionError('%s ended with status %s' % (
                    node.name, node.process.returncode))

    def primary(self):
        """Who serves those that write, or None."""
        self.alive()
        return next((node for node in self.nodes if node.is_primary()), None)

    def wait_primary(self, seconds=PATIENCE, but=None):
        return server.eventually(
            lambda: next((n for n in [self.primary()] if n and n is not but), None), seconds)

    def replicas(self):
        """The running nodes but the primary."""
        primary = self.wait_primary()
        return [node for node in self.nodes if node.runs and node is not primary]

    def settle(self, seconds=PATIENCE):
        """Wait until all nodes serve readers what the primary serves now, or later things."""
        wanted = self.wait_primary(seconds).last_tid() or b''
        tids = {}

        def is_there():
            self.alive()
            for node in self.nodes:
                if node.runs and not (tids.get(node.name) or b'') >= wanted:
                    tids[node.name] = node.last_tid(read_only=True)
            return all((tids.get(node.name) or b'') >= wanted
                       for node in self.nodes if node.runs)

        try:
            server.eventually(is_there, seconds)
        except AssertionError as error:
            raise AssertionError('%s\nwanted was %s, there are %s' % (error, wanted.hex(), {
                name: tid and tid.hex() for name, tid in tids.items()})) from None

    def converged(self):
        """Complaints about nodes that differ in content. All have to be stopped."""
        first, *others = self.nodes
        complaints = []
        for node in others:
            complaints += differences(first, node)
        return complaints

    def show_output(self, file=sys.stdout):
        for node in self.nodes:
            status = node.process.poll() if node.process else 'not running'
            print('--- %s (%s)\n%s' % (node.name, status, node.output()), file=file)
        for node in self.nodes:
            if node.runs and not node.is_stopped:
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    print('--- status of %s\n%s' % (node.name, self.ctl(node, 'status')[1]), file=file)
        file.flush()


def differences(one, two):
    """Of two nodes' data files, transaction by transaction, and of their blobs."""
    with contextlib.closing(FileIterator(one.data)) as a, \
            contextlib.closing(FileIterator(two.data)) as b:
        first, second = iter(a), iter(b)
        while True:
            t, u = (content(next(it, None)) for it in (first, second))
            if t != u:
                return ['%s has %s, %s has %s' % (one.name, brief(t), two.name, brief(u))]
            if t is None:
                break
    blobs = [digests(os.path.join(node.directory, 'blobs')) for node in (one, two)]
    return ['blob %s: %s has %s, %s has %s' % (
        name, one.name, blobs[0].get(name), two.name, blobs[1].get(name))
            for name in sorted(set(blobs[0]) | set(blobs[1]))
            if blobs[0].get(name) != blobs[1].get(name)]


def content(t):
    return t and (t.tid, t.status, t.user, t.description, t.extension_bytes,
                  [(r.oid, r.tid, r.data) for r in t])


def brief(t):
    return 'nothing more' if t is None else 'tid %s (%r, %d objects)' % (
        t[0].hex(), t[3], len(t[5]))


def digests(directory):
    """{path: digest} of the blobs below."""
    found = {}
    for top, _, names in os.walk(directory):
        for name in names:
            if name.endswith('.blob'):
                path = os.path.join(top, name)
                with open(path, 'rb') as f:
                    found[os.path.relpath(path, directory)] = hashlib.sha256(
                        f.read()).hexdigest()[:16]
    return found


def own_mounts():
    """Be in a mount namespace of our own, if that is allowed; why not, else.

    What is mounted there is gone with the last process in it. Root or not, this starts the
    program anew.
    """
    if os.environ.get('STANDBY_OWN_MOUNTS'):
        return None
    for words in (['unshare', '--mount'], ['unshare', '--map-root-user', '--mount']):
        try:
            done = subprocess.run(
                words + ['mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, universal_newlines=True)
        except OSError as error:
            return str(error)
        if done.returncode == 0:
            os.environ['STANDBY_OWN_MOUNTS'] = '1'
            os.execvp(words[0], words + [sys.executable] + sys.argv)
    return done.stdout.strip()
