"""How long one client's loads take beside others that ask for much, or for what is slow.

    beside.py [--rounds N] [--seconds S] [--runzeo]

The client has one connection and one load on the way, of small objects that are in memory. Beside
it there is in turn: nobody; one that has a thousand such loads on the way; one with a thousand
loads of objects of 100 kB; one that asks for thirty histories of 1000 revisions at a time; one
that loads objects which are not in memory (64 on the way), since they are thrown out of the page
cache all the time. Prints a Markdown table: medians of the rounds of the client's median and 99th
percentile in microseconds, and what the other one got a second.
"""
import argparse
import multiprocessing
import os
import random
import shutil
import statistics
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

from figures import Frames  # noqa: E402
from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)
from harness.rawclient import filler

SMALL = range(0, 20000)             # 1 kB each
MANY = 20000                        # an object with 1000 revisions
COLD = range(30000, 230000)         # 1 kB each; nothing else stands behind them
LARGE = range(20001, 20501)         # 100 kB each


def make_file(path):
    """The data file, and where its cold part begins."""
    fs = ZODB.FileStorage.FileStorage(path)

    def commit(oids, length, serial=z64):
        t = TransactionMetaData()
        fs.tpc_begin(t)
        for oid in oids:
            fs.store(p64(oid), serial, data[length], '', t)
        fs.tpc_vote(t)
        return fs.tpc_finish(t)

    data = {length: filler(length) for length in (100, 1000, 100000)}
    commit(SMALL, 1000)
    serial = z64
    for _ in range(1000):
        serial = commit([MANY], 100, serial)
    commit(LARGE, 100000)
    begin = fs.getSize()
    for start in range(COLD.start, COLD.stop, 20000):
        commit(range(start, start + 20000), 1000)
    fs.close()
    return begin


# --- clients

def latencies(address, seconds):
    """Of loads, one after the other, sorted."""
    client = Raw(address)
    requests = [load(client, oid) for oid in random.Random(1).choices(SMALL, k=5000)]
    frames = Frames(client.socket)
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        request = requests[len(found) % len(requests)]
        start = time.perf_counter()
        client.socket.sendall(request)
        while not frames.receive():
            pass
        found.append(time.perf_counter() - start)
    return sorted(found)


def load(client, oid):
    return client.message((p64(oid), maxtid), False, 'loadBefore', (p64(oid), maxtid))


def loader(oids, depth):
    """A neighbour with so many loads on the way."""
    def requests(client):
        return [load(client, oid) for oid in random.Random(2).choices(oids, k=10000)]
    return requests, depth


def historian():
    def requests(client):
        return [client.message(n, False, 'history', (p64(MANY), 1000)) for n in range(1, 61)]
    return requests, 30


NEIGHBOURS = [
    ('nobody', None),
    ('a thousand loads on the way', loader(SMALL, 1000)),
    ('a thousand loads of 100 kB on the way', loader(LARGE, 1000)),
    ('thirty histories on the way', historian()),
    ('64 loads on the way that wait for the disk', loader(COLD, 64)),
]


def neighbour(address, what, answered, stop):
    """Asks as fast as answers come, until told to stop."""
    make, depth = what
    client = Raw(address)
    requests = make(client)
    frames = Frames(client.socket)
    sent = count = 0
    while not stop.is_set():
        while sent - count < depth:
            n = min(depth - (sent - count), len(requests) - sent % len(requests))
            first = sent % len(requests)
            client.socket.sendall(b''.join(requests[first:first + n]))
            sent += n
        count += frames.receive()
        answered.value = count


def evict(path, begin, stop):
    """Keep what stands behind *begin* out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    while not stop.is_set():
        os.posix_fadvise(fd, begin, 0, os.POSIX_FADV_DONTNEED)
        time.sleep(.002)
    os.close(fd)


def measure(s, what, path, begin, seconds):
    """Median and 99th percentile in microseconds, and what the neighbour got a second."""
    stop = multiprocessing.Event()
    answered = multiprocessing.Value('q', 0)
    processes = [multiprocessing.Process(target=evict, args=(path, begin, stop))]
    if what:
        processes.append(multiprocessing.Process(
            target=neighbour, args=(s.address, what, answered, stop)))
    for process in processes:
        process.start()
    try:
        time.sleep(.5)
        before = answered.value
        found = latencies(s.address, seconds)
        rate = (answered.value - before) / seconds
    finally:
        stop.set()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
    return found[len(found) // 2] * 1e6, found[len(found) * 99 // 100] * 1e6, rate


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=3, help='of each measurement')
    parser.add_argument('--runzeo', action='store_true', help='measure runzeo, too')
    arguments = parser.parse_args()
    servers = [('standbyd', server.command())]
    if arguments.runzeo:
        servers.append(('runzeo', server.REFERENCE))
    directory = tempfile.mkdtemp(prefix='beside-')
    found = {}
    try:
        print('# making files', file=sys.stderr)
        begin = make_file(os.path.join(directory, 'Data.fs'))
        for n in range(arguments.rounds):
            for name, command in servers:
                s = server.Server(directory, command=command, msgpack=True).start(timeout=300)
                for title, what in NEIGHBOURS:
                    values = measure(s, what, os.path.join(directory, 'Data.fs'), begin,
                                     arguments.seconds)
                    found.setdefault((name, title), []).append(values)
                    print('# round %d: %s: %s: p50 %.0f us, p99 %.0f us, beside %.0f/s' % (
                        n + 1, name, title, *values), file=sys.stderr, flush=True)
                s.stop()
    finally:
        shutil.rmtree(directory)
    print('| beside it | %s |' % ' | '.join(
        '%s: p50 us | p99 us | its neighbour /s' % name for name, _ in servers))
    print('|---|%s' % ('---:|---:|---:|' * len(servers)))
    for title, _ in NEIGHBOURS:
        cells = []
        for name, _ in servers:
            cells += ['%.0f' % statistics.median(column) for column in zip(*found[name, title])]
        print('| %s | %s |' % (title, ' | '.join(cells)))


if __name__ == '__main__':
    main()
