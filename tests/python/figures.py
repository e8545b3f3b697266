"""First figures: memory, loads and commits of runzeo and standbyd, side by side.

    figures.py [--rounds N] [--objects N] [--seconds S]

Both serve copies of the same files, one after the other in each round, so that what else the
machine does falls on both. Prints a Markdown table of medians. The clients are raw sockets in
processes of their own: for loads they send bytes that were made before and count the frames that
come back, since a real client would be slower than what is measured.
"""
import argparse
import multiprocessing
import os
import platform
import random
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time

import ZODB.FileStorage
from ZODB.Connection import TransactionMetaData
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import z64

import server

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)
from harness.rawclient import filler

LOADERS = 8             # processes, one connection each
DEPTH = 16              # loads that each has on the way
COMMITTERS = 16
CONNECTIONS = 1000      # that do nothing
OBJECT_LEN = 300        # bytes of data, about what a Plone site has in the median
OBJECTS_LOADED = 20000  # different ones


def make_file(path, count):
    """A data file with *count* objects, in transactions of 10,000."""
    fs = ZODB.FileStorage.FileStorage(path)
    data = filler(OBJECT_LEN)
    for start in range(0, count, 10000):
        t = TransactionMetaData()
        fs.tpc_begin(t)
        for i in range(start, min(start + 10000, count)):
            fs.store(p64(i), z64, data, '', t)
        fs.tpc_vote(t)
        fs.tpc_finish(t)
    fs.close()


class Files:
    """Data files made once; each measurement gets a copy."""

    def __init__(self, directory, objects):
        self.directory = directory
        self.large = os.path.join(directory, 'large.fs')
        self.small = os.path.join(directory, 'small.fs')
        make_file(self.large, objects)
        make_file(self.small, OBJECTS_LOADED)

    def serve(self, command, data=None):
        """A server of *command* on a copy of a file, or on a new one."""
        directory = tempfile.mkdtemp(dir=self.directory)
        if data:
            for suffix in '', '.index':
                shutil.copy(data + suffix, os.path.join(directory, 'Data.fs' + suffix))
        return server.Server(directory, command=command).start(timeout=300)


# --- what is measured

def memory(files, command, data):
    s = files.serve(command, data)
    # It listens before it has read all, maybe; the answer to register comes after.
    Raw(s.address).close()
    time.sleep(.5)
    bytes_ = s.resident()
    finish(s)
    return bytes_ / (1 << 20)


def connection_memory(files, command):
    """Of a client that has registered, and loaded something."""
    s = files.serve(command, files.small)
    Raw(s.address).call('loadBefore', p64(0), maxtid)
    before = s.resident()
    clients = [Raw(s.address) for _ in range(CONNECTIONS)]
    for client in clients:
        client.call('loadBefore', p64(0), maxtid)
    bytes_ = s.resident() - before
    finish(s)
    return bytes_ / CONNECTIONS / 1024


def loads(files, command, seconds):
    s = files.serve(command, files.small)
    rate = sum(together(load_many, LOADERS, s.address, seconds))
    finish(s)
    return rate


def commits(files, command, connections, seconds):
    s = files.serve(command)
    rate = sum(together(commit_many, connections, s.address, seconds))
    finish(s)
    return rate


def finish(s):
    s.stop()
    shutil.rmtree(s.directory)


def together(function, count, address, seconds):
    """What *function* returns in *count* processes that begin at the same time."""
    barrier = multiprocessing.Barrier(count)
    results = multiprocessing.Queue()

    def run(number):
        results.put(function(address, seconds, number, barrier))

    processes = [multiprocessing.Process(target=run, args=(n,)) for n in range(count)]
    for process in processes:
        process.start()
    values = [results.get(timeout=seconds + 60) for _ in processes]
    for process in processes:
        process.join()
    return values


def load_many(address, seconds, number, barrier):
    """Loads a second, of random objects, with DEPTH requests on the way."""
    client = Raw(address)
    order = random.Random(number).choices(range(OBJECTS_LOADED), k=5000)
    requests = [client.message((p64(i), maxtid), False, 'loadBefore', (p64(i), maxtid))
                for i in order]
    frames = Frames(client.socket)
    barrier.wait()
    start = time.monotonic()
    sent = count = 0
    while time.monotonic() - start < seconds:
        while sent - count < DEPTH:
            # As many as have come are asked for in one piece.
            n = min(DEPTH - (sent - count), len(requests) - sent % len(requests))
            first = sent % len(requests)
            client.socket.sendall(b''.join(requests[first:first + n]))
            sent += n
        count += frames.receive()
    return count / (time.monotonic() - start)


class Frames:
    """Counts frames without looking into them."""

    def __init__(self, sock):
        self.socket = sock
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b''

    def receive(self):
        """Take in what there is; the number of frames that are complete by that."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError('the server hung up')
        data = self.rest + data
        pos = count = 0
        while len(data) - pos >= 4:
            end = pos + 4 + struct.unpack_from('>I', data, pos)[0]
            if end > len(data):
                break
            pos = end
            count += 1
        self.rest = data[pos:]
        return count


def commit_many(address, seconds, _number, barrier):
    """Commits a second, each of one object of its own."""
    client = Raw(address)
    client.timeout = 60
    data = filler(OBJECT_LEN)
    (oid,), serial = client.new(data)
    barrier.wait()
    start = time.monotonic()
    count = 0
    while time.monotonic() - start < seconds:
        serial = client.commit((oid, serial, data))
        client.pushed.clear()
        client.order.clear()
        count += 1
    return count / (time.monotonic() - start)


# --- the course of it

def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--objects', type=int, default=1000000)
    parser.add_argument('--seconds', type=float, default=4, help='of each measurement')
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix='figures-')
    try:
        print('# making files', file=sys.stderr)
        measure(Files(directory, arguments.objects), arguments)
    finally:
        shutil.rmtree(directory)


def measure(files, arguments):
    seconds = arguments.seconds
    figures = [
        ('resident memory, idle (MB)',
         lambda command: memory(files, command, None)),
        ('resident memory, %s objects (MB)' % format(arguments.objects, ','),
         lambda command: memory(files, command, files.large)),
        ('resident memory of a connection (kB)',
         lambda command: connection_memory(files, command)),
        ('loads/s, %d connections, %d each on the way' % (LOADERS, DEPTH),
         lambda command: loads(files, command, seconds)),
        ('commits/s, 1 connection',
         lambda command: commits(files, command, 1, seconds)),
        ('commits/s, %d connections' % COMMITTERS,
         lambda command: commits(files, command, COMMITTERS, seconds)),
    ]
    servers = [('runzeo', server.REFERENCE), ('standbyd', server.command())]
    values = {}
    for n in range(arguments.rounds):
        for title, figure in figures:
            for name, command in servers:
                values.setdefault((title, name), []).append(figure(command))
            print('# round %d: %s: %s' % (n + 1, title, ', '.join(
                '%s %.1f' % (name, values[title, name][-1]) for name, _ in servers)),
                file=sys.stderr, flush=True)
    print('| | runzeo (Python %s) | standbyd | ratio |' % platform.python_version())
    print('|---|---:|---:|---:|')
    for title, _ in figures:
        reference, ours = (statistics.median(values[title, name]) for name, _ in servers)
        print('| %s | %s | %s | %.2f |' % (title, number(reference), number(ours),
                                           ours / reference))
    print('\nMedians of %d interleaved rounds of %g s; %d processors, %s.' % (
        arguments.rounds, seconds, os.cpu_count(), platform.machine()))


def number(value):
    return '%.1f' % value if value < 100 else format(round(value), ',')


if __name__ == '__main__':
    main()
