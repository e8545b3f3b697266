"""kill -9 under load: is every acknowledged transaction there afterwards?

    kill9.py [--rounds N] [--msgpack]
    kill9.py --self-test

Eight client processes commit: each its own objects, and increments of counters that all share
(by retrying after conflicts). Each writes down what was acknowledged, in a file. In every round
the server is killed at a random time under this load and started again; then everything that was
acknowledged in any round has to be there, by its tid and its content. At the end ZODB's own tools
have to find the file sound, and the Python server has to serve the same.

`--self-test` cuts the last acknowledged transaction off the file after a kill: the check has to
find that out.
"""
import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import transaction
import ZODB
import ZODB.POSException
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage import FileIterator
from ZODB.scripts import fsrefs
from ZODB.scripts import fstest
from ZODB.utils import p64
from ZODB.utils import u64
from zodbpickle.pickle import Unpickler

import server

CLIENTS = 8
OBJECTS = 20            # of each client
COUNTERS = 4            # shared
LOST_CONNECTION = (ClientDisconnected, ZODB.POSException.StorageError)


# --- one client, in a process of its own

def client(port, number, path):
    """Commit until the parent goes away; write down what was acknowledged."""
    storage = open_storage(port, wait_timeout=120)
    db = ZODB.DB(storage)
    connection = db.open(transaction.TransactionManager())
    manager = connection.transaction_manager
    rng = random.Random(number)
    parent = os.getppid()
    n = 0
    with open(path, 'a', buffering=1) as acknowledged:
        while os.getppid() == parent:
            n += 1
            key = rng.randrange(OBJECTS)
            counter = rng.randrange(COUNTERS) if n % 4 == 0 else None
            try:
                manager.begin()
                mine = connection.root()['client %d' % number][key]
                mine['n'] = n
                mine['padding'] = 'x' * rng.choice((10, 1000, 50000))
                if counter is not None:
                    counters = connection.root()['counters']
                    counters[counter]['client %d' % number] = n
                manager.commit()
            except ZODB.POSException.ConflictError:
                manager.abort()
                continue
            except LOST_CONNECTION:
                manager.abort()
                time.sleep(.05)
                continue
            acknowledged.write(json.dumps(dict(
                n=n, key=key, counter=counter, oid=u64(mine._p_oid),
                tid=u64(mine._p_serial))) + '\n')


def open_storage(port, **options):
    return ClientStorage(('127.0.0.1', port), min_disconnect_poll=.1, **options)


# --- the check

def read_log(path):
    """What a client wrote down; its last line may be torn as clients are killed at the end."""
    result = []
    with open(path) as f:
        for line in f:
            if line.endswith('\n'):
                result.append(json.loads(line))
    return result


def check(port, logs):
    """Complaints about what the server on *port* has, given what each client wrote down."""
    db = ZODB.DB(open_storage(port, wait_timeout=60))
    with contextlib.closing(db):
        connection = db.open()
        complaints = []
        for number, entries in enumerate(logs):
            for entry in entries:
                complaints += check_entry(db.storage, number, entry)
            complaints += check_newest(connection, number, entries)
        return complaints


def check_entry(storage, number, entry):
    """The revision that was acknowledged is there."""
    oid, tid = p64(entry['oid']), p64(entry['tid'])
    try:
        data = storage.loadSerial(oid, tid)
    except KeyError:
        return ['client %d: tid %016x (n=%d) is lost' % (number, entry['tid'], entry['n'])]
    state = mapping_in(data)
    if state['n'] != entry['n']:
        return ['client %d: tid %016x has n=%r, not %d' % (
            number, entry['tid'], state['n'], entry['n'])]
    return []


def mapping_in(data):
    """The items of a PersistentMapping without references, from its record."""
    f = io.BytesIO(data)
    Unpickler(f).load()
    return Unpickler(f).load()['data']


def check_newest(connection, number, entries):
    """Current objects are at least as new as what was acknowledged.

    They may be newer: a transaction can be committed, and the server killed before it says so.
    """
    complaints = []
    newest = {}
    counters = {}
    for entry in entries:
        newest[entry['key']] = entry['n']
        if entry['counter'] is not None:
            counters[entry['counter']] = entry['n']
    root = connection.root()
    name = 'client %d' % number
    for key, n in newest.items():
        # Before its first number an object has none: then all of them are lost.
        found = root[name][key].get('n', -1)
        if found < n:
            complaints.append('%s: object %d has n=%d, acknowledged was %d' % (
                name, key, found, n))
    for counter, n in counters.items():
        found = root['counters'][counter].get(name, 0)
        if found < n:
            complaints.append('%s: counter %d has n=%d, acknowledged was %d' % (
                name, counter, found, n))
    return complaints


# --- the course of it

class Run:

    def __init__(self, directory, msgpack):
        self.directory = directory
        self.server = server.Server(directory, msgpack=msgpack)
        self.paths = [os.path.join(directory, 'client-%d.log' % i) for i in range(CLIENTS)]
        self.clients = []
        self.checked = [0] * CLIENTS

    def set_up(self):
        self.server.start()
        db = ZODB.DB(open_storage(self.port))
        with db.transaction() as connection:
            root = connection.root()
            for i in range(CLIENTS):
                root['client %d' % i] = PersistentMapping(
                    {key: PersistentMapping() for key in range(OBJECTS)})
            root['counters'] = PersistentMapping(
                {i: PersistentMapping() for i in range(COUNTERS)})
        db.close()
        for i, path in enumerate(self.paths):
            open(path, 'w').close()
            self.clients.append(subprocess.Popen(
                [sys.executable, __file__, '--client', str(self.port), str(i), path],
                stderr=subprocess.DEVNULL))

    @property
    def port(self):
        return self.server.address[1]

    def kill_under_load(self):
        """Kill the server when every client has committed again, at a random time."""
        sizes = [os.path.getsize(path) for path in self.paths]
        server.eventually(lambda: all(
            os.path.getsize(path) > size for path, size in zip(self.paths, sizes)), 120)
        time.sleep(random.uniform(0, 1.5))
        self.server.kill()

    def acknowledged(self):
        """What each client wrote down."""
        return [read_log(path) for path in self.paths]

    def round(self):
        """Kill, start, check; all that was acknowledged before the kill has to be there."""
        self.kill_under_load()
        logs = self.acknowledged()
        self.server.start()
        old, self.checked = self.checked, [len(log) for log in logs]
        fresh = [log[n:] for log, n in zip(logs, old)]
        print('   %d transactions acknowledged' % sum(map(len, fresh)), flush=True)
        return check(self.port, fresh)

    def check_file(self):
        """ZODB's own tools find the file sound, and in it everything acknowledged."""
        path = os.path.join(self.directory, 'Data.fs')
        fstest.check(path)
        with contextlib.redirect_stdout(io.StringIO()) as report:
            fsrefs.main(path)
        complaints = ['fsrefs: ' + line for line in report.getvalue().splitlines()]
        with contextlib.closing(FileIterator(path)) as transactions:
            found = {(u64(t.tid), u64(r.oid)) for t in transactions for r in t}
        for number, log in enumerate(self.acknowledged()):
            complaints += ['client %d: tid %016x is not in the file' % (number, entry['tid'])
                           for entry in log if (entry['tid'], entry['oid']) not in found]
        return complaints

    def check_with_reference(self):
        """The Python server serves the same file."""
        self.server.start(server.REFERENCE)
        complaints = check(self.port, self.acknowledged())
        self.server.stop()
        return complaints

    def stop(self):
        self.stop_clients()
        self.server.stop()

    def stop_clients(self):
        for process in self.clients:
            process.kill()
            process.wait()
        self.clients = []

    def close(self):
        self.stop_clients()
        self.server.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def self_test(run):
    """Lose the newest acknowledged transaction: are there complaints?"""
    run.set_up()
    run.kill_under_load()
    run.stop_clients()
    logs = run.acknowledged()
    newest = max(entry['tid'] for log in logs for entry in log)
    path = os.path.join(run.directory, 'Data.fs')
    with contextlib.closing(FileIterator(path, start=p64(newest))) as transactions:
        pos = next(iter(transactions))._tpos
    os.truncate(path, pos)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path + '.index')
    run.server.start()
    over_zeo = check(run.port, logs)
    run.server.stop()
    in_file = run.check_file()
    return ['the loss of tid %016x was not noticed %s' % (newest, where)
            for where, complaints in (('over ZEO', over_zeo), ('in the file', in_file))
            if not any('%016x' % newest in complaint for complaint in complaints)]


class Tally:
    """Counts steps, and prints them with their complaints."""

    passed = failed = 0

    def step(self, name, function):
        print('-- ' + name, flush=True)
        try:
            complaints = function() or []
        except Exception:
            complaints = traceback.format_exc().splitlines()
        for line in complaints[:30]:
            print('   ' + line)
        if complaints:
            self.failed += 1
        else:
            self.passed += 1
        return not complaints


def main():
    logging.disable(logging.CRITICAL)
    if sys.argv[1:2] == ['--client']:
        port, number, path = sys.argv[2:]
        client(int(port), int(number), path)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--self-test', action='store_true')
    parser.add_argument('--msgpack', action='store_true')
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    tally = Tally()
    run = Run(tempfile.mkdtemp(prefix='kill9-'), arguments.msgpack)
    try:
        if arguments.self_test:
            tally.step('self-test', lambda: self_test(run))
        else:
            tally.step('start', run.set_up)
            for n in range(arguments.rounds):
                if not tally.step('round %d' % (n + 1), run.round):
                    break
            tally.step('all rounds', lambda: check(run.port, run.acknowledged()))
            tally.step('stop', run.stop)
            tally.step('the file', run.check_file)
            tally.step('served by runzeo', run.check_with_reference)
    finally:
        if tally.failed:
            print(run.server.output())
        run.close()
    server.summary(tally.passed, tally.failed, 0)


if __name__ == '__main__':
    main()
