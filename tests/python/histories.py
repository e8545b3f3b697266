"""Generated histories: the same transactions for the same seed, in whatever storage; and what has
come of them, to be compared.
"""
import io
import os
import random
import time

from persistent.TimeStamp import TimeStamp
from ZEO.Exceptions import ServerException
from ZODB._compat import PersistentPickler
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import fspack
from ZODB.POSException import POSError
from ZODB.POSException import POSKeyError
from ZODB.utils import p64
from ZODB.utils import u64
from ZODB.utils import z64

BEGIN = 1577880000      # 2020-01-01 12:00 UTC
STEP = 7                # seconds between two transactions


class Ref:
    def __init__(self, pid):
        self.pid = pid


class Thing:
    """Stands for an application's class; nobody makes an instance."""


def record(state):
    """An object record, as ZODB's ObjectWriter makes it."""
    out = io.BytesIO()
    pickler = PersistentPickler(lambda obj: obj.pid if isinstance(obj, Ref) else None, out, 3)
    pickler.dump(Thing)
    pickler.dump(state)
    return out.getvalue()


def tid_at(n):
    seconds = BEGIN + n * STEP
    return TimeStamp(*time.gmtime(seconds)[:5] + (seconds % 60,)).raw()


def time_of(tid):
    return TimeStamp(tid).timeTime()


class Generator:
    """Writes transactions of all kinds into a storage; the same ones for the same seed."""

    def __init__(self, seed, directory, blobs):
        self.random = random.Random(seed)
        self.directory = directory
        self.blobs = blobs
        self.seed = seed
        self.clock = 0
        self.oids = [z64]           # all that there ever were
        self.known = set()          # those that are there, for fewer dangling references
        self.is_blob = {}
        self.dangling = self.random.random() < .15
        self.next_oid = 1

    def run(self, storage, count):
        if not self.known:
            self.transaction(storage, self.store, z64)
        for _ in range(count):
            self.random = random.Random('kind %s %d' % (self.seed, self.clock))
            kind = self.random.choices(
                [self.store_some, self.undo, self.delete, self.restore, self.nothing],
                [20, 5, 1, 2, 1])[0]
            self.transaction(storage, kind)

    def transaction(self, storage, change, *arguments):
        # One storage may refuse something earlier than another, and must not have used up less.
        r = self.random = random.Random('%s %d' % (self.seed, self.clock))
        self.clock += 1
        extension = {'number': self.clock} if r.random() < .2 else {}
        t = TransactionMetaData(
            r.choice(['', 'somebody', 'j\xf6rg']), r.choice(['', 'did something', 'x' * 300]),
            extension)
        storage.tpc_begin(t, tid_at(self.clock))
        try:
            change(storage, t, *arguments)
            storage.tpc_vote(t)
        except POSError:
            # Conflicts, and what cannot be undone.
            storage.tpc_abort(t)
            return
        storage.tpc_finish(t)
        for oid in self.oids:
            try:
                storage.load(oid)
            except POSKeyError:
                self.known.discard(oid)
            else:
                self.known.add(oid)

    def store_some(self, storage, t):
        r = self.random
        oids = r.sample(self.oids, min(len(self.oids), r.choice([0, 1, 1, 1, 2, 4])))
        new = [self.new_oid() for _ in range(r.choice([0, 0, 1, 1, 2, 5]))]
        for oid in new + oids:
            self.store(storage, t, oid)
        if new and r.random() < .7:
            # Somebody has to refer to them.
            owner = r.choice([oid for oid in self.oids if oid not in new and oid not in oids]
                             or [None])
            if owner is not None:
                self.store(storage, t, owner, new)

    def store(self, storage, t, oid, references=()):
        try:
            serial = storage.load(oid)[1]
        except POSKeyError:
            serial = z64
            if oid in self.known:
                raise
        data = self.data(oid, references)
        if self.is_blob.get(oid):
            path = os.path.join(self.directory, 'new-blob')
            with open(path, 'wb') as f:
                f.write(b'%d %d ' % (self.seed, self.clock) + oid)
            storage.storeBlob(oid, serial, data, path, '', t)
        else:
            storage.store(oid, serial, data, '', t)

    def data(self, oid, references=()):
        r = self.random
        among = self.oids if self.dangling else sorted(self.known) or [z64]
        state = [Ref((ref, Thing)) for ref in references]
        for _ in range(r.choice([0, 1, 2, 3, 8])):
            ref = r.choice(among)
            state.append(Ref(r.choice([
                ref, (ref, Thing), (ref, Thing), (ref, None), ['w', (ref,)], ['w', (ref, 'other')],
                [ref], ['n', ('other', ref)], ['m', ('other', ref, Thing)]])))
        state.append('%d ' % self.clock + 'x' * r.choice([0, 10, 500]))
        return record({'state': state, 'oid': u64(oid)})

    def new_oid(self):
        oid = p64(self.next_oid)
        self.next_oid += self.random.choice([1, 1, 1, 1, 70000])
        self.oids.append(oid)
        self.is_blob[oid] = self.blobs and self.random.random() < .4
        return oid

    def undo(self, storage, t):
        log = storage.undoLog(0, self.random.choice([1, 3, 30]))
        # Without a root most other tests would be in vain.
        log = [entry for entry in log if entry['time'] > BEGIN + 1.5 * STEP]
        entries = self.random.sample(log, min(len(log), self.random.choice([1, 1, 1, 2])))
        for entry in entries:
            storage.undo(entry['id'], t)

    def delete(self, storage, t):
        oid = self.random.choice(self.oids[1:] or self.oids)
        storage.deleteObject(oid, storage.load(oid)[1], t)

    def restore(self, storage, t):
        """What copyTransactionsFrom does: a record that says which one it is a copy of."""
        oid = self.random.choice(self.oids)
        if self.is_blob.get(oid):
            return
        revision = self.random.choice(storage.history(oid, 20))
        data = storage.loadSerial(oid, revision['tid'])
        storage.restore(oid, tid_at(self.clock), data, '', revision['tid'], t)

    def nothing(self, storage, t):
        pass


class CorrectedGC(fspack.GC):
    """FileStorage's marking, without two faults that we do not share.

    Both are about objects that undo brings back after the pack time, with a pointer to a record
    from before. With garbage collection, what such a record refers to is lost, if nothing refers
    to its object at pack time. Without, the record itself is lost, and the pack fails.
    """

    def findReachable(self):
        if self.gc:
            return super().findReachable()
        self.buildPackIndex()
        self.reachable = self.oid2curpos
        super().findReachableFromFuture()

    def findReachableAtPacktime(self, roots):
        if self.gc:
            super().findReachableAtPacktime(roots)

    def findReachableFromFuture(self):
        before = set(self.reachable.keys())
        super().findReachableFromFuture()
        for oid in set(self.reachable.keys()) - before:
            self.findReachableAtPacktime(self.findrefs(self.reachable[oid]))


def read(path, must=True):
    if not must and not os.path.exists(path):
        return None
    with open(path, 'rb') as f:
        return f.read()


def tree(directory):
    """{name: content} of the blobs in a directory."""
    found = {}
    for path, directories, names in os.walk(directory):
        below = os.path.relpath(path, directory)
        if below == 'tmp':
            continue
        found.update((os.path.join(below, name), read(os.path.join(path, name)))
                     for name in names if name not in ('.lock', '.removed'))
    return found


def content(storage, tids=True):
    """All that is in a storage.

    Without *tids* there are numbers in place of new ones, and records have no order: of an object
    that a transaction has twice, undo may put the new record in either place.
    """
    last = tid_at(1000000)
    numbers = {}
    order = list if tids else lambda records: sorted(records, key=repr)

    def shown(tid):
        if tids or tid is None or tid < last:
            return tid
        return numbers.setdefault(tid, len(numbers))

    return [(shown(txn.tid), txn.status, txn.user, txn.description, txn.extension,
             order((r.oid, shown(r.tid), shown(r.data_txn), r.data) for r in txn))
            for txn in storage.iterator()]


def attempt(function, *arguments, **options):
    """The result, or the name of the error."""
    try:
        return function(*arguments, **options)
    except KeyError:
        return 'KeyError'
    except (POSError, ServerException) as error:
        return type(error).__name__


def blob(storage, oid, tid):
    try:
        return read(storage.loadBlob(oid, tid))
    except POSKeyError:
        return 'POSKeyError'
