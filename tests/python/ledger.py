"""Clients that commit and write down what was acknowledged, and the check that it is there.

    ledger.py write|read OPTIONS

The first part runs in processes of their own, for any Python from 3.7 on and any ZEO from 5 on.
OPTIONS are arguments of `write` and `read`, as JSON.

A writer changes its own objects, and at times counters that all share: each such transaction adds
one to what it has read. It ends each attempt with a line of JSON in its ledger: `n` is the number
of the attempt, which is in the note of the transaction, too, and `end` is

    ok          acknowledged, with the tid
    conflict    refused
    failed      the connection was lost before the finish
    unknown     the connection was lost in the finish
    error       something that no server may do; `text` has it

So of each transaction in a file it can be told who has made it, and whether it may be there.
"""
import contextlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback

import transaction
import ZODB
import ZODB.POSException
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import Blob
from ZODB.FileStorage import FileIterator
from ZODB.scripts import fsrefs
from ZODB.scripts import fstest
from ZODB.utils import p64
from ZODB.utils import u64
from zodbpickle.pickle import Unpickler

OBJECTS = 20            # of each client
COUNTERS = 4            # shared
LOST_CONNECTION = (ClientDisconnected, ZODB.POSException.StorageError)


# --- one writer, in a process of its own

def write(addresses, number, path, padding=(10, 1000, 50000), pause=0, blob_dir=None,
          shares=True):
    """Commit until SIGTERM, or until the parent goes away."""
    storage = open_storage(addresses, wait_timeout=120, blob_dir=blob_dir)
    writer = Writer(storage, number, padding, blob_dir is not None, shares)
    parent = os.getppid()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    with open(path, 'a', buffering=1) as ledger:
        while os.getppid() == parent and not stopping:
            began = time.monotonic()
            entry = writer.attempt()
            entry.update(began=began, ended=time.monotonic())
            ledger.write(json.dumps(entry) + '\n')
            time.sleep(.05 if entry['end'] in ('failed', 'unknown') else pause)


def open_storage(addresses, **options):
    if isinstance(addresses, int):
        addresses = ('127.0.0.1', addresses)
    elif isinstance(addresses, list):
        addresses = [tuple(a) if isinstance(a, list) else a for a in addresses]
    return ClientStorage(addresses, min_disconnect_poll=.1, **options)


def open_connection(storage, seconds=120):
    """A DB loads the root object when it is made: its server may go away just then."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ZODB.DB(storage).open(transaction.TransactionManager())
        except LOST_CONNECTION:
            if time.monotonic() > until:
                raise
            time.sleep(.1)


class Writer:

    def __init__(self, storage, number, padding, has_blobs, shares):
        self.number = number
        self.padding = padding
        self.has_blobs = has_blobs
        self.shares = shares
        self.rng = random.Random(number)
        self.n = 0
        self.seen = {}          # the largest value of each counter
        self.in_finish = False
        finish = storage.tpc_finish

        def tpc_finish(*arguments, **options):
            self.in_finish = True
            return finish(*arguments, **options)

        storage.tpc_finish = tpc_finish
        self.connection = open_connection(storage)
        self.manager = self.connection.transaction_manager

    def attempt(self):
        """One transaction, and what has become of it."""
        self.n += 1
        self.in_finish = False
        counter = self.rng.randrange(COUNTERS) if self.shares and self.n % 4 == 0 else None
        entry = dict(n=self.n, key=self.rng.randrange(OBJECTS), counter=counter)
        try:
            self.manager.begin()
            back = self.counters_went_back()
            if back:
                self.manager.abort()
                return dict(entry, end='error', text=back)
            mine = self.change(entry)
            self.manager.commit()
            return dict(entry, end='ok', oid=u64(mine._p_oid), tid=u64(mine._p_serial))
        except ZODB.POSException.ConflictError as error:
            entry.update(end='conflict', text=repr(error))
        except LOST_CONNECTION as error:
            entry.update(end='unknown' if self.in_finish else 'failed', text=repr(error))
        except Exception:
            entry.update(end='error', text=traceback.format_exc())
        self.manager.abort()
        return entry

    def counters_went_back(self):
        """What was committed once is there from then on, and what was read was committed."""
        if not self.shares:
            return None
        for counter, mapping in self.connection.root()['counters'].items():
            found = mapping.get('all', 0)
            seen = self.seen.setdefault(counter, 0)
            if found < seen:
                return 'counter %d went back from %d to %d' % (counter, seen, found)
            self.seen[counter] = found
        return None

    def change(self, entry):
        n = entry['n']
        self.manager.get().note(u'client %d n %d counter %s' % (
            self.number, n, entry['counter']))
        mine = self.connection.root()['client %d' % self.number][entry['key']]
        mine['n'] = n
        mine['padding'] = 'x' * self.rng.choice(self.padding)
        if n % 5 == 0:
            mine['new'] = PersistentMapping(n=n)
        if self.has_blobs and n % 7 == 0:
            mine['blob'] = Blob(b'%d ' % n * self.rng.choice((10, 30000)))
        if entry['counter'] is not None:
            mapping = self.connection.root()['counters'][entry['counter']]
            name = 'client %d' % self.number
            mapping[name] = n
            mapping['all'] = mapping.get('all', 0) + 1
        return mine


# --- one reader, in a process of its own

def read(addresses, path):
    """Read until SIGTERM; complain if anything goes back. Each line is what was seen."""
    storage = open_storage(addresses, wait_timeout=120, read_only=True)
    connection = open_connection(storage)
    manager = connection.transaction_manager
    parent = os.getppid()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    seen, last = {}, b''
    with open(path, 'a', buffering=1) as ledger:
        while os.getppid() == parent and not stopping:
            complaints = []
            try:
                manager.begin()
                tid = storage.lastTransaction()
                if tid < last:
                    complaints.append('the last transaction went back from %016x to %016x' % (
                        u64(last), u64(tid)))
                last = max(last, tid)
                for counter, mapping in connection.root()['counters'].items():
                    found = mapping.get('all', 0)
                    if found < seen.get(counter, 0):
                        complaints.append('counter %d went back from %d to %d' % (
                            counter, seen[counter], found))
                    seen[counter] = max(found, seen.get(counter, 0))
                ledger.write(json.dumps(dict(
                    end='error' if complaints else 'ok', tid=u64(tid), at=time.monotonic(),
                    text='; '.join(complaints))) + '\n')
            except LOST_CONNECTION + (ZODB.POSException.ReadConflictError,) as error:
                ledger.write(json.dumps(dict(end='failed', text=repr(error))) + '\n')
            except Exception:
                ledger.write(json.dumps(dict(end='error', text=traceback.format_exc())) + '\n')
            with contextlib.suppress(Exception):
                manager.abort()
            time.sleep(.05)


def persist_new(addresses, seconds):
    """A client that comes now commits something, whatever it takes within so many seconds."""
    db = open_connection(open_storage(addresses, wait_timeout=seconds), seconds).db()
    with contextlib.closing(db):
        until = time.monotonic() + seconds
        while True:
            try:
                with db.transaction() as connection:
                    connection.root()['new'] = time.monotonic()
                return
            except LOST_CONNECTION + (ZODB.POSException.ConflictError,):
                if time.monotonic() > until:
                    raise
                time.sleep(.05)


# --- the check

def set_up(storage, clients):
    """What writers with numbers below *clients* need."""
    db = open_connection(storage).db()
    with db.transaction() as connection:
        root = connection.root()
        for i in range(clients):
            root['client %d' % i] = PersistentMapping(
                {key: PersistentMapping() for key in range(OBJECTS)})
        root['counters'] = PersistentMapping(
            {i: PersistentMapping() for i in range(COUNTERS)})
    db.close()


def end_of_lines(path):
    """Behind the last line of a file that is there as a whole."""
    with open(path, 'rb') as f:
        end = f.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65536)
            f.seek(begin)
            found = f.read(end - begin).rfind(b'\n')
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def read_ledger(path, pos=0):
    """What a client wrote down from *pos* on; its last line may be torn if it was killed."""
    result = []
    with open(path) as f:
        f.seek(pos)
        for line in f:
            if line.endswith('\n'):
                result.append(json.loads(line))
    return result


def ends(ledgers):
    """How many attempts have ended so, for each way."""
    result = {}
    for entries in ledgers:
        for entry in entries:
            result[entry['end']] = result.get(entry['end'], 0) + 1
    return result


def acknowledged(path):
    return [entry for entry in read_ledger(path) if entry['end'] == 'ok']


def check(addresses, logs):
    """Complaints about what is served, given what was acknowledged to each client."""
    db = ZODB.DB(open_storage(addresses, wait_timeout=60))
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
    return check_state(data, number, entry)


def check_state(data, number, entry):
    state = mapping_in(data)
    if state['n'] != entry['n']:
        return ['client %d: tid %016x has n=%r, not %d' % (
            number, entry['tid'], state['n'], entry['n'])]
    return []


def mapping_in(data):
    """The items of a PersistentMapping from its record; references are None."""
    unpickler = Unpickler(io.BytesIO(data))
    unpickler.persistent_load = lambda reference: None
    unpickler.load()
    return unpickler.load()['data']


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


def check_sound(path):
    """ZODB's own tools find the file sound."""
    fstest.check(path)
    with contextlib.redirect_stdout(io.StringIO()) as report:
        fsrefs.main(path)
    return ['fsrefs: ' + line for line in report.getvalue().splitlines()]


def check_file(path, logs):
    """The file is sound, and has everything acknowledged."""
    complaints = check_sound(path)
    with contextlib.closing(FileIterator(path)) as transactions:
        found = {(u64(t.tid), u64(r.oid)) for t in transactions for r in t}
    for number, log in enumerate(logs):
        complaints += ['client %d: tid %016x is not in the file' % (number, entry['tid'])
                       for entry in log if (entry['tid'], entry['oid']) not in found]
    return complaints


def transactions_of(*paths):
    """Of files that go on where the one before ends: the same file before packs, and behind."""
    last = b''
    for path in paths:
        with contextlib.closing(FileIterator(path)) as transactions:
            for t in transactions:
                if t.tid > last:
                    last = t.tid
                    yield t


def check_attempts(path, ledgers, before=()):
    """What is in the file is what the ledgers say: nothing lost, nothing twice, nothing refused.

    What was packed away is in the files *before*.
    *ledgers* have all attempts of each client, but for the last one of a client that was killed.
    """
    complaints = []
    found = {}              # (client, n): [tid of the transaction, ...]
    counted = {}            # counter: transactions that added to it
    values = {}             # counter: its last value
    states = {}             # (tid, oid): data
    acknowledged_at = {(entry['tid'], entry['oid'])
                       for ledger in ledgers for entry in ledger if entry['end'] == 'ok'}
    last = 0
    with contextlib.closing(transactions_of(*before, path)) as transactions:
        for t in transactions:
            tid = u64(t.tid)
            if tid <= last:
                complaints.append('tid %016x comes after %016x' % (tid, last))
            last = tid
            for record in t:
                if (tid, u64(record.oid)) in acknowledged_at:
                    states[tid, u64(record.oid)] = record.data
                if record.data and b'all' in record.data and b'client ' in record.data:
                    state = mapping_in(record.data)
                    if isinstance(state.get('all'), int):
                        values[u64(record.oid)] = state['all']
            words = t.description.decode('utf-8', 'replace').split()
            if words[:1] == ['client'] and len(words) == 6:
                found.setdefault((int(words[1]), int(words[3])), []).append(tid)
                if words[5] != 'None':
                    counted[int(words[5])] = counted.get(int(words[5]), 0) + 1
    for (number, n), tids in found.items():
        if len(tids) > 1:
            complaints.append('client %d: n=%d was done %d times: %s' % (
                number, n, len(tids), ' '.join('%016x' % tid for tid in tids)))
    for number, ledger in enumerate(ledgers):
        for entry in ledger:
            complaints += check_attempt(number, entry, found, states)
    if sum(counted.values()) != sum(values.values()):
        complaints.append('updates of counters were lost: %d transactions, but the counters '
                          'have %s' % (sum(counted.values()), sorted(values.values())))
    return complaints


def check_attempt(number, entry, found, states):
    tids = found.get((number, entry['n']), [])
    who = 'client %d: n=%d' % (number, entry['n'])
    if entry['end'] == 'ok':
        if entry['tid'] not in tids:
            return ['%s: tid %016x is not in the file' % (who, entry['tid'])]
        data = states.get((entry['tid'], entry['oid']))
        if data is None:
            return ['%s: tid %016x is there without its object' % (who, entry['tid'])]
        return check_state(data, number, entry)
    if entry['end'] == 'error':
        return ['%s: %s' % (who, entry['text'])]
    if entry['end'] in ('conflict', 'failed') and tids:
        return ['%s: %s, but tid %016x is in the file (%s)' % (
            who, entry['end'], tids[0], entry['text'])]
    return []


class Clients:
    """Processes that write or read, with a ledger each."""

    def __init__(self, directory):
        self.directory = directory
        self.paths = []
        self.processes = []

    def start(self, what, python=None, environ=None, **options):
        path = os.path.join(self.directory, '%s-%d.ledger' % (what, len(self.paths)))
        if what == 'write':
            options.setdefault('number', len(self.paths))
        open(path, 'w').close()
        self.paths.append(path)
        with open(path + '.err', 'w') as errors:
            self.processes.append(subprocess.Popen(
                [python or sys.executable, os.path.abspath(__file__), what,
                 json.dumps(dict(options, path=path))],
                stdin=subprocess.DEVNULL, stderr=errors, env=environ))

    def wait_until_used(self, seconds):
        """Wait until each has done something with success."""
        until = time.monotonic() + seconds
        nothing = [0] * len(self.paths)
        while not self.all_since(nothing):
            if self.ended() or time.monotonic() > until:
                raise AssertionError('\n'.join(
                    ['clients %s did nothing' % self.without_since(nothing)] + self.ended()))
            time.sleep(.05)

    def marks(self):
        """Where the ledgers end now: a line that is being written is behind that."""
        return [end_of_lines(path) for path in self.paths]

    def ledgers(self):
        return [read_ledger(path) for path in self.paths]

    def all_since(self, marks):
        """Whether each was told `ok` since, in an attempt that began later."""
        return not self.without_since(marks)

    def without_since(self, marks):
        """The numbers of those that were not."""
        return [number for number, (path, mark) in enumerate(zip(self.paths, marks))
                if not any(entry['end'] == 'ok' for entry in read_ledger(path, mark)[1:])]

    def acknowledged_since(self, marks, began=0):
        """In attempts that began later than that."""
        return sum(entry['end'] == 'ok' and entry['began'] > began
                   for path, mark in zip(self.paths, marks) for entry in read_ledger(path, mark))

    def errors(self):
        """What no server may do."""
        return ['%s: %s' % (os.path.basename(path), entry['text'])
                for path in self.paths for entry in read_ledger(path)
                if entry['end'] == 'error']

    def ended(self):
        """Complaints about those that have ended by themselves."""
        complaints = []
        for path, process in zip(self.paths, self.processes):
            if process.poll() is not None:
                with open(path + '.err', errors='replace') as f:
                    complaints.append('%s ended with status %s: %s' % (
                        os.path.basename(path), process.returncode, f.read()[-2000:]))
        return complaints

    def stop(self, seconds=30):
        """Have them finish what they do; kill who does not."""
        for process in self.processes:
            process.terminate()
        until = time.monotonic() + seconds
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, until - time.monotonic()))
        self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []


class Tally:
    """Counts steps, and prints them with their complaints."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def step(self, name, function):
        began = time.monotonic()
        print('-- ' + name, flush=True)
        try:
            complaints = function() or []
        except Exception:
            complaints = traceback.format_exc().splitlines()
        for line in complaints[:30]:
            print('   ' + line)
        print('   %s, %.1f s' % ('FAILED' if complaints else 'ok', time.monotonic() - began),
              flush=True)
        if complaints:
            self.failed += 1
        else:
            self.passed += 1
        return not complaints

    def skip(self, name, reason):
        self.skipped += 1
        print('SKIPPED: %s: %s' % (name, reason), flush=True)


def main():
    logging.disable(logging.CRITICAL)
    what, options = sys.argv[1:]
    {'write': write, 'read': read}[what](**json.loads(options))
    # Threads of clients must not keep the process.
    os._exit(0)


if __name__ == '__main__':
    main()
