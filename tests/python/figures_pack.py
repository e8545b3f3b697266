"""Packs under load: runzeo and standbyd, side by side, from copies of one generated file.

    figures_pack.py [--megabytes N] [--committers N] [--loaders N] [--pace SECONDS]
                    [--quiet SECONDS] [--rounds N] [--alone] [--only NAME]

The file has a graph of pages with text, of which about half is dropped: old revisions, and objects
that nothing refers to any more. Clients commit to objects of their own, and load at random, before
the pack, and while it runs; `--pace` has them rest between two commits, so that what is measured is
not the queue that they make for each other. `--alone` packs a copy without any server, too, with
ZODB's FileStorage. Prints a Markdown table of medians. Needs four times the room in `$TMPDIR`.
"""
import argparse
import io
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

import ZODB.FileStorage
from ZODB._compat import PersistentPickler
from ZODB.Connection import TransactionMetaData
from ZODB.serialize import referencesf
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import z64

import server

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)

CHILDREN = 50           # references in a folder
PAGE_LEN = 1110         # bytes of a page in the file, about
COMMITTED_LEN = 300     # bytes of data in each commit
OBJECTS_PER_TXN = 1000


class Ref:
    def __init__(self, oid):
        self.pid = p64(oid), Page


class Page:
    """Stands for an application's class; nobody makes an instance."""


def record(state):
    out = io.BytesIO()
    pickler = PersistentPickler(lambda obj: obj.pid if isinstance(obj, Ref) else None, out, 3)
    pickler.dump(Page)
    pickler.dump(state)
    return out.getvalue()


class Database:
    """A tree of folders with pages, and one folder for each client to commit to."""

    def __init__(self, path, length, clients):
        self.random = random.Random(1)
        self.storage = ZODB.FileStorage.FileStorage(path)
        self.texts = [''.join(self.random.choices('abcdefgh \n', k=5000)) for _ in range(50)]
        self.serials = {}
        self.batch = []
        # A quarter is garbage, a quarter old revisions.
        count = length // 2 // PAGE_LEN
        self.fill(count)
        self.garbage(count, length // 4)
        self.revise(count, length * 99 // 100)
        self.clients = list(range(count * 2, count * 2 + clients))
        for oid in self.clients:
            self.store(oid, record({'text': ''}))
        self.store(0, self.folder([1, *self.clients]))
        self.flush()
        self.storage.close()
        self.loaded = range(1, count)

    def page(self):
        r = self.random
        # Most are small, as on a Plone site; catalogues and texts make the size.
        size = r.choice([50, 100, 200, 300, 500, 1000, 4000])
        start = r.randrange(5000 - size)
        return {
            'title': 'page %d' % r.randrange(10**6),
            'text': r.choice(self.texts)[start:start + size],
            'numbers': r.sample(range(10**6), 5),
            'parent': Ref(0),
        }

    def folder(self, children):
        return record({'children': {str(oid): Ref(oid) for oid in children}})

    def fill(self, count):
        """A tree: pages with oids from 1 on, the first of which are folders of the next."""
        for oid in range(1, count):
            state = self.page()
            if oid <= count // CHILDREN:
                first = (oid - 1) * CHILDREN + 2
                children = range(first, min(first + CHILDREN, count))
                state['children'] = {str(n): Ref(n) for n in children}
            self.store(oid, record(state))
        self.flush()

    def garbage(self, count, length):
        """Pages that refer to each other and to the others, and that nobody refers to."""
        end = self.storage.getSize() + length
        oid = count
        while self.storage.getSize() < end:
            state = self.page()
            state['others'] = [Ref(self.random.randrange(1, oid)) for _ in range(3)]
            self.store(oid, record(state))
            oid += 1
        self.flush()
        assert oid < count * 2

    def revise(self, count, length):
        """New revisions of pages that have no children."""
        while self.storage.getSize() < length:
            oid = self.random.randrange(count // CHILDREN + 1, count)
            self.store(oid, record(self.page()))
        self.flush()

    def store(self, oid, data):
        self.batch.append((oid, data))
        if len(self.batch) >= OBJECTS_PER_TXN:
            self.flush()

    def flush(self):
        t = TransactionMetaData('', 'generated')
        self.storage.tpc_begin(t)
        for oid, data in dict(self.batch).items():
            self.storage.store(p64(oid), self.serials.get(oid, z64), data, '', t)
        self.storage.tpc_vote(t)
        tid = self.storage.tpc_finish(t)
        self.serials.update((oid, tid) for oid, _ in self.batch)
        self.batch = []


# --- the load, in processes of its own

def committing(address, oid, pace, stop, results):
    client = Raw(address)
    client.timeout = 600
    data = record({'text': 'x' * COMMITTED_LEN})
    serial = client.call('loadBefore', p64(oid), maxtid)[1]
    times = []
    while not stop.is_set():
        start = time.monotonic()
        serial = client.commit((p64(oid), serial, data))
        client.pushed.clear()
        client.order.clear()
        times.append((start, time.monotonic() - start))
        time.sleep(pace)
    results.put(('commit', times))


def loading(address, oids, seed, stop, results):
    client = Raw(address)
    client.timeout = 600
    generator = random.Random(seed)
    times = []
    while not stop.is_set():
        oid = generator.choice(oids)
        start = time.monotonic()
        client.call('loadBefore', p64(oid), maxtid)
        client.pushed.clear()
        client.order.clear()
        times.append((start, time.monotonic() - start))
        # So that they do not take the processor from what is measured.
        time.sleep(.002)
    results.put(('load', times))


class Memory(threading.Thread):
    """The most memory that a server has had since the last look, sampled."""

    def __init__(self, server_):
        super().__init__(daemon=True)
        self.server = server_
        self.peak = 0
        self.ended = threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(.05):
            self.peak = max(self.peak, self.anonymous())

    def anonymous(self):
        """Bytes that are the process's own: what it has mapped of files is the system's."""
        with open('/proc/%d/status' % self.server.process.pid) as f:
            for line in f:
                if line.startswith('RssAnon:'):
                    return int(line.split()[1]) * 1024
        return 0


def measure(directory, command, database, arguments):
    """{what: value} of one pack."""
    place = tempfile.mkdtemp(dir=directory)
    for suffix in '', '.index':
        shutil.copy(os.path.join(directory, 'Data.fs' + suffix),
                    os.path.join(place, 'Data.fs' + suffix))
    s = server.Server(place, command=command).start(timeout=600)
    client = Raw(s.address)
    client.timeout = 7200
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(
            target=committing, args=(s.address, oid, arguments.pace, stop, results))
        for oid in database.clients]
    processes += [
        multiprocessing.Process(
            target=loading, args=(s.address, database.loaded, n, stop, results))
        for n in range(arguments.loaders)]
    for process in processes:
        process.start()
    memory = Memory(s)
    # The first second is that of the clients' starts.
    time.sleep(1)
    quiet_begun = time.monotonic()
    time.sleep(arguments.quiet)
    before = memory.peak
    memory.peak = 0
    begun = time.monotonic()
    client.call('pack', time.time() - arguments.quiet - 1, True)
    ended = time.monotonic()
    peak = memory.peak
    memory.ended.set()
    size = os.path.getsize(os.path.join(place, 'Data.fs'))
    stop.set()
    times = {'commit': [], 'load': []}
    for _ in processes:
        kind, values = results.get(timeout=600)
        times[kind] += values
    for process in processes:
        process.join()
    s.stop()
    shutil.rmtree(place)
    figures = {
        'pack (s)': ended - begun,
        'file after (MB)': size / 1e6,
        'memory before (MB)': before / 1e6,
        'memory at most during (MB)': peak / 1e6,
    }
    for kind in 'commit', 'load':
        # Not what the pack's begin delayed already.
        quiet = [(at, took) for at, took in times[kind]
                 if at + took < begun and at > quiet_begun]
        busy = [(at, took) for at, took in times[kind] if begun < at + took and at < ended]
        for name, values in ('before', quiet), ('during', busy):
            spread(figures, '%s, %s' % (kind, name), [took * 1000 for _, took in values])
        figures['%ss/s, before' % kind] = len(quiet) / arguments.quiet
        figures['%ss/s, during' % kind] = len(busy) / (ended - begun)
        figures['%s, p99 during / before' % kind] = (
            figures['%s, during, p99 (ms)' % kind] / figures['%s, before, p99 (ms)' % kind])
    return figures


def pack_alone(directory):
    """Seconds that ZODB's pack takes, on a copy, in a process of its own, and nobody else there."""
    place = tempfile.mkdtemp(dir=directory)
    path = os.path.join(place, 'Data.fs')
    for suffix in '', '.index':
        shutil.copy(os.path.join(directory, 'Data.fs' + suffix), path + suffix)
    results = multiprocessing.Queue()

    def run():
        storage = ZODB.FileStorage.FileStorage(path)
        begun = time.monotonic()
        storage.pack(time.time(), referencesf)
        took = time.monotonic() - begun
        storage.close()
        results.put((took, os.path.getsize(path)))

    process = multiprocessing.Process(target=run)
    process.start()
    took, size = results.get(timeout=7200)
    process.join()
    shutil.rmtree(place)
    return {'pack (s)': took, 'file after (MB)': size / 1e6}


def spread(figures, title, values):
    values.sort()
    for name, part in ('p50', .5), ('p99', .99), ('max', 1):
        value = values[min(int(part * len(values)), len(values) - 1)] if values else float('nan')
        figures['%s, %s (ms)' % (title, name)] = value


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--megabytes', type=int, default=200)
    parser.add_argument('--committers', type=int, default=4)
    parser.add_argument('--loaders', type=int, default=2)
    parser.add_argument('--pace', type=float, default=0, help='seconds between two commits')
    parser.add_argument('--quiet', type=float, default=10, help='seconds of load before the pack')
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--alone', action='store_true', help='ZODB without a server, too')
    parser.add_argument('--only', help='runzeo or standbyd')
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix='figures-')
    values = {}
    try:
        path = os.path.join(directory, 'Data.fs')
        database = Database(path, arguments.megabytes * 10**6, arguments.committers)
        size = os.path.getsize(path)
        print('# %d objects, %.0f MB' % (len(database.serials), size / 1e6), file=sys.stderr)
        contestants = [
            (name, lambda command=command: measure(directory, command, database, arguments))
            for name, command in (('runzeo', server.REFERENCE), ('standbyd', server.command()))
            if arguments.only in (None, name)]
        if arguments.alone:
            contestants.insert(0, ('ZODB alone', lambda: pack_alone(directory)))
        for _ in range(arguments.rounds):
            for name, run in contestants:
                for title, value in run().items():
                    values.setdefault(title, {}).setdefault(name, []).append(value)
                print('# %s: %.1f s' % (name, values['pack (s)'][name][-1]), file=sys.stderr,
                      flush=True)
    finally:
        shutil.rmtree(directory)
    names = [name for name, _ in contestants]
    print('| | %s |' % ' | '.join(names))
    print('|---|%s' % ('---:|' * len(names)))
    for title, by_name in values.items():
        print('| %s | %s |' % (title, ' | '.join(
            '%.4g' % statistics.median(by_name[name]) if name in by_name else ''
            for name in names)))
    print('\n%d objects, %.0f MB; %d committing (pace %g s) and %d loading clients; %d processors, '
          '%s, Python %s.' % (
              len(database.serials), size / 1e6, arguments.committers, arguments.pace,
              arguments.loaders, os.cpu_count(), platform.machine(), platform.python_version()))


if __name__ == '__main__':
    main()
