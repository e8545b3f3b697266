"""Nodes with a corosync daemon each, on one machine.

Each node is a process that holds a network and a mount namespace: of its own are the network,
/run, /dev/shm, /etc/corosync and /var/lib/corosync, which is all that corosync and its library
share by name. The nodes' links end in bridges of one more namespace, the hub; a partition moves
them to different bridges, so that nobody loses his carrier. The machine itself is not touched, and
nothing but logs is left when the processes are gone, which they are when this one is, however it
ends.

Where namespaces are forbidden there can be one node, in the machine's own.
"""
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time

NETWORK = '10.131.%d.%d'
PACKAGES = {'corosync': 'corosync', 'ip': 'iproute2'}
os.environ['PATH'] += ':/usr/sbin:/sbin'

CONFIGURATION = '''\
totem {
    version: 2
    cluster_name: standby-test
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    token: %(token)d
    token_coefficient: %(coefficient)d
}
nodelist {
%(nodes)s}
quorum {
    provider: corosync_votequorum
}
system {
    sched_rr: no
    move_to_root_cgroup: no
%(system)s}
logging {
    to_syslog: no
    to_stderr: no
    to_logfile: yes
    logfile: %(log)s
    timestamp: hires
}
'''

NODE = '''\
    node {
        nodeid: %d
        name: node%d
        ring0_addr: %s
    }
'''

# What a node's process does before it waits for us to end.
HOLD = '''
set -e
if [ -n "$1" ]; then
    mkdir -p /etc/corosync /var/lib/corosync
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /dev/shm
    mount --bind "$1/etc" /etc/corosync
    mount --bind "$1/lib" /var/lib/corosync
fi
ip link set lo up
echo ready
exec cat
'''


class Unavailable(Exception):
    """What is needed cannot be had here; the reason is the text."""


def die_with_us():
    """A child ends with its parent, even if that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)     # PR_SET_PDEATHSIG


def start(command, **options):
    return subprocess.Popen(command, preexec_fn=die_with_us, **options)


def call(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, timeout=60)
    if done.returncode:
        raise RuntimeError('%s: %s' % (' '.join(command), done.stdout.strip()))
    return done.stdout


def install():
    """The packages, if they are not there; of whatever version the distribution has."""
    wanted = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not wanted:
        return
    if os.geteuid() != 0:
        raise Unavailable('%s not installed, and only root could' % ', '.join(wanted))
    if not shutil.which('apt-get'):
        raise Unavailable('%s not installed, and there is no apt-get' % ', '.join(wanted))
    # The package starts its daemon unless this forbids it.
    policy = '/usr/sbin/policy-rc.d'
    is_ours = not os.path.exists(policy)
    if is_ours:
        with open(policy, 'w', encoding='ascii') as file:
            file.write('#!/bin/sh\nexit 101\n')
        os.chmod(policy, 0o755)
    try:
        environ = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
        for command in ['update'], ['install', '-y', '--no-install-recommends'] + wanted:
            done = subprocess.run(['apt-get', '-q'] + command, env=environ, timeout=300,
                                  stdin=subprocess.DEVNULL)
            if done.returncode and command != ['update']:
                raise Unavailable('apt-get could not install %s' % ', '.join(wanted))
    finally:
        if is_ours:
            os.unlink(policy)


class Cluster:

    def __init__(self, count, directory, token=1000, coefficient=0):
        """`count` nodes; 0 for one in the machine's own namespaces. The times are in ms."""
        self.directory = directory
        self.token = token
        self.coefficient = coefficient
        os.makedirs(directory)
        self.is_isolated = count > 0
        self.nodes = [Node(self, n) for n in range(1, max(count, 1) + 1)]
        self.hub = None

    def prepare(self):
        if os.geteuid() != 0:
            raise Unavailable('corosync runs as root only')
        nodes = ''.join(NODE % (n.number, n.number, n.address) for n in self.nodes)
        key = os.path.join(self.directory, 'authkey')
        call('corosync-keygen', '-l', '-k', key)
        if not self.is_isolated:
            with open('/proc/net/unix', encoding='ascii') as file:
                if '@cpg' in file.read():
                    raise Unavailable('there is a corosync on this machine already')
        if self.is_isolated:
            self.hub = hold('')
            self.bridge('br0')
        for node in self.nodes:
            node.prepare(nodes, key)

    def in_hub(self, *arguments):
        return call('nsenter', '--net=/proc/%d/ns/net' % self.hub.pid, 'ip', *arguments)

    def bridge(self, name):
        self.in_hub('link', 'add', name, 'type', 'bridge')
        self.in_hub('link', 'set', name, 'up')

    def partition(self, *parts):
        """Nodes hear those of their own part only. Without parts all hear each other."""
        for link in self.in_hub('-o', 'link', 'show', 'type', 'bridge').splitlines():
            name = link.split(': ')[1]
            if name != 'br0' and not parts:
                for node in self.nodes:
                    self.in_hub('link', 'set', node.port, 'master', 'br0')
                self.in_hub('link', 'del', name)
        for number, part in enumerate(parts[1:], 1):
            self.bridge('br%d' % number)
            for node in part:
                self.in_hub('link', 'set', node.port, 'master', 'br%d' % number)

    def end(self):
        for node in self.nodes:
            node.end()
        if self.hub:
            self.hub.kill()
            self.hub.wait()


def hold(directory):
    """A process in namespaces of its own."""
    process = start(['unshare', '--net', '--mount', '--propagation', 'private', 'sh', '-c', HOLD,
                     'sh', directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, universal_newlines=True)
    if process.stdout.readline() != 'ready\n':
        process.kill()
        reason = process.communicate()[1].strip().splitlines()
        raise Unavailable('no namespaces (%s)' % (reason[-1] if reason else 'no reason given'))
    return process


class Node:

    def __init__(self, cluster, number):
        self.cluster = cluster
        self.number = number
        self.directory = os.path.join(cluster.directory, 'node%d' % number)
        self.port = 'port%d' % number
        self.holder = None
        self.daemon = None
        self.address = NETWORK % (0, number) if cluster.is_isolated else '127.0.0.1'

    def prepare(self, nodes, key):
        etc = os.path.join(self.directory, 'etc')
        lib = os.path.join(self.directory, 'lib')
        os.makedirs(os.path.join(etc, 'uidgid.d'))
        os.makedirs(lib)
        system = '' if self.cluster.is_isolated else '    state_dir: %s\n' % lib
        with open(os.path.join(etc, 'corosync.conf'), 'w', encoding='ascii') as file:
            file.write(CONFIGURATION % {
                'nodes': nodes, 'log': self.log, 'system': system,
                'token': self.cluster.token, 'coefficient': self.cluster.coefficient})
        shutil.copy(key, etc)
        if not self.cluster.is_isolated:
            with open(os.path.join(etc, 'corosync.conf'), encoding='ascii') as file:
                text = file.read()
            text = text.replace('totem {', 'totem {\n    keyfile: %s/authkey' % etc, 1)
            with open(os.path.join(etc, 'corosync.conf'), 'w', encoding='ascii') as file:
                file.write(text)
            return
        self.holder = hold(self.directory)
        cluster, net = self.cluster, '/proc/%d/ns/net' % self.holder.pid
        cluster.in_hub('link', 'add', self.port, 'type', 'veth', 'peer', 'name', 'link0',
                       'netns', str(self.holder.pid))
        cluster.in_hub('link', 'set', self.port, 'master', 'br0', 'up')
        call('nsenter', '--net=' + net, 'ip', 'addr', 'add', self.address + '/24', 'dev', 'link0')
        call('nsenter', '--net=' + net, 'ip', 'link', 'set', 'link0', 'up')

    @property
    def log(self):
        return os.path.join(self.directory, 'corosync.log')

    def inside(self, *command):
        """The command, so that it runs in this node, as a process of the same id."""
        if not self.holder:
            return list(command)
        of = '/proc/%d/ns/' % self.holder.pid
        return ['nsenter', '--net=%snet' % of, '--mount=%smnt' % of, *command]

    def start_daemon(self):
        command = ['corosync', '-f']
        if not self.holder:
            command += ['-c', os.path.join(self.directory, 'etc', 'corosync.conf')]
        with open(os.path.join(self.directory, 'stderr'), 'ab') as stderr:
            self.daemon = start(self.inside(*command), stdin=subprocess.DEVNULL, stdout=stderr,
                                stderr=stderr)

    def wait_for_daemon(self, seconds=30):
        """Waits until it answers, and sees all nodes."""
        wanted = 'Nodes:            %d\n' % len(self.cluster.nodes)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.daemon.poll() is not None:
                break
            done = subprocess.run(self.inside('corosync-quorumtool', '-s'), timeout=20,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, universal_newlines=True)
            if wanted in done.stdout:
                return
            time.sleep(.1)
        raise Unavailable('corosync does not start: %s' % self.last_words())

    def last_words(self):
        for name in 'stderr', 'corosync.log':
            with contextlib.suppress(OSError):
                with open(os.path.join(self.directory, name), errors='replace') as file:
                    lines = [line.strip() for line in file if line.strip()]
                if lines:
                    return lines[-1]
        return 'it says nothing'

    def signal(self, number):
        self.daemon.send_signal(number)

    def kill_daemon(self):
        self.daemon.kill()
        self.daemon.wait()

    def end(self):
        if self.daemon and not self.holder and self.daemon.poll() is None:
            # So that it removes what is of the machine.
            self.daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(10)
        for process in self.daemon, self.holder:
            if process:
                process.kill()
                process.wait()
