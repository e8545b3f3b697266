"""Packs of standbyd and of stock FileStorage, compared on generated databases.

    pack_compare.py [TEST ...]

Each database is packed, added to, and packed again, by both, each on a copy of its own. `PACK_SEED`
and `PACK_COUNT` choose other databases or more; a failure names its seed.
"""
import collections
import hashlib
import io
import logging
import os
import random
import shutil
import tempfile
import time
import unittest
import unittest.mock

from persistent.TimeStamp import TimeStamp
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ServerException
from ZODB._compat import PersistentPickler
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage import fspack
from ZODB.POSException import POSError
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import u64
from ZODB.utils import z64

import server

SEED = int(os.environ.get('PACK_SEED', 1))
COUNT = int(os.environ.get('PACK_COUNT', 12))
BEGIN = 1577880000      # 2020-01-01 12:00 UTC
STEP = 7                # seconds between two transactions

totals = collections.Counter()


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
            kind = self.random.choices(
                [self.store_some, self.undo, self.delete, self.restore, self.nothing],
                [20, 5, 1, 2, 1])[0]
            self.transaction(storage, kind)

    def transaction(self, storage, change, *arguments):
        r = self.random
        self.clock += 1
        extension = {'number': self.clock} if r.random() < .2 else {}
        t = TransactionMetaData(
            r.choice(['', 'somebody', 'j\xf6rg']), r.choice(['', 'did something', 'x' * 300]),
            extension)
        storage.tpc_begin(t, tid_at(self.clock))
        try:
            change(storage, t, *arguments)
        except POSError:
            # Conflicts, and what cannot be undone.
            storage.tpc_abort(t)
            return
        storage.tpc_vote(t)
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
        entries = self.random.sample(log, min(len(log), self.random.choice([1, 1, 1, 2])))
        for entry in entries:
            storage.undo(entry['id'], t)

    def delete(self, storage, t):
        oid = self.random.choice(self.oids[1:] or [z64])
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


class Case(unittest.TestCase):

    blobs = False

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        # Stock FileStorage logs of packs in vain, and of blobs that undo brings back.
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)

    def compare(self, seed, gc, keep_old):
        Comparison(self, seed, os.path.join(self.directory, 'data'), gc, keep_old, self.blobs).run()


class BlobCase(Case):

    blobs = True

    def setUp(self):
        super().setUp()
        s = server.Server(self.directory, '<filestorage 1>\n path Data.fs\n blob-dir blobs\n'
                          '</filestorage>')
        try:
            s.start()
        except AssertionError as error:
            if 'blobs are not supported' in str(error):
                self.skipTest('the server has no blobs')
            raise
        s.stop()


for seed_ in range(SEED, SEED + COUNT):
    for name, gc_, keep_old_ in [
            ('gc', True, True), ('no_gc', False, True), ('gc_keeping_nothing', True, False)]:
        for case_ in Case, BlobCase:
            setattr(case_, 'test_%s_seed_%d' % (name, seed_),
                    lambda self, s=seed_, g=gc_, k=keep_old_: self.compare(s, g, k))


class Comparison:
    """One database, packed by both."""

    def __init__(self, case, seed, directory, gc, keep_old, blobs):
        self.case = case
        self.gc = gc
        self.keep_old = keep_old
        self.blobs = blobs
        self.stock = os.path.join(directory, 'stock')
        self.ours = os.path.join(directory, 'ours')
        self.before = os.path.join(directory, 'before')
        os.makedirs(self.stock)
        self.generator = Generator(seed, directory, blobs)
        self.random = random.Random(-seed)
        self.storages = '\n'.join([
            '<filestorage 1>', 'path Data.fs', 'blob-dir blobs' if blobs else '',
            'pack-gc %s' % str(gc).lower(), 'pack-keep-old %s' % str(keep_old).lower(),
            '</filestorage>'])

    def open(self, directory, **options):
        if self.blobs:
            options['blob_dir'] = os.path.join(directory, 'blobs')
        return FileStorage(
            os.path.join(directory, 'Data.fs'), pack_gc=self.gc, pack_keep_old=self.keep_old,
            **options)

    def run(self):
        storage = self.open(self.stock)
        self.generator.run(storage, self.random.choice([5, 30, 90]))
        storage.close()
        shutil.copytree(self.stock, self.ours)
        for _ in range(self.random.choice([1, 2, 3])):
            self.pack(self.pack_time())
            if self.random.random() < .3:
                self.pack(self.pack_time())
            self.add()
        self.undo()

    def pack_time(self):
        """Of nothing, something, or all; at a transaction or between two."""
        last = self.generator.clock
        n = self.random.choice([-1, self.random.randrange(last), last // 2, last, last, last + 99])
        between = self.random.choice([0, STEP / 2])
        return time_of(tid_at(n)) + between

    def pack(self, when):
        before = self.digest('Data.fs')
        shutil.copytree(self.stock, self.before)
        last, failed = self.pack_stock(when)
        s = server.Server(self.ours, self.storages).start()
        client = ClientStorage(s.address, wait_timeout=20)
        try:
            ours_failed = attempt(client.pack, when, wait=True) is not None
            # There may be room behind what is written.
            if ours_failed != failed or not self.read(self.ours).startswith(self.read(self.stock)):
                shutil.rmtree(self.stock)
                shutil.copytree(self.before, self.stock)
                with unittest.mock.patch.object(fspack, 'GC', CorrectedGC):
                    last, failed = self.pack_stock(when)
                totals['where FileStorage failed, or lost objects'] += 1
            self.case.assertEqual(ours_failed, failed)
            self.read_all(client)
            self.case.assertEqual(client.lastTransaction(), last)
        finally:
            client.close()
            s.stop()
        shutil.rmtree(self.before)
        packed = self.digest('Data.fs') != before
        totals['packs that %s' % (
            'failed (dangling reference)' if failed else
            'dropped something' if packed else 'had nothing to drop')] += 1
        self.same_files()
        if packed:
            # FileStorage removes the old file when it begins; we, when there is another.
            self.same('Data.fs.old')
            if self.keep_old:
                self.case.assertEqual(self.digest('Data.fs.old'), before)

    def pack_stock(self, when):
        """The last transaction, and whether it failed."""
        storage = self.open(self.stock)
        try:
            last = storage.lastTransaction()
            storage.pack(when, referencesf)
            # It stays, even if its transaction is gone, until the storage is opened again.
            self.case.assertEqual(storage.lastTransaction(), last)
        except (KeyError, fspack.PackError):
            return last, True
        finally:
            storage.close()
        return last, False

    def read(self, directory):
        return read(os.path.join(directory, 'Data.fs'))

    def digest(self, name):
        path = os.path.join(self.stock, name)
        return hashlib.sha256(read(path)).hexdigest() if os.path.exists(path) else None

    def same_files(self):
        left = [name for name in os.listdir(self.ours) if name.startswith('Data.fs')]
        for name in left:
            self.case.assertIn(name, ['Data.fs', 'Data.fs.index', 'Data.fs.lock', 'Data.fs.tmp',
                                      'Data.fs.old', 'Data.fs.oids'])
        if not self.same('Data.fs', must=False):
            self.same_records()
            totals['files that differ in bytes'] += 1
        if self.blobs:
            for name in 'blobs', 'blobs.old':
                stock, ours = (tree(os.path.join(directory, name))
                               for directory in (self.stock, self.ours))
                self.case.assertEqual(ours, stock, name)
                totals['blob files'] += len(stock)

    def same(self, name, must=True):
        stock, ours = (read(os.path.join(directory, name), must=False)
                       for directory in (self.stock, self.ours))
        if must:
            self.case.assertEqual(ours is None, stock is None, name)
            self.case.assertTrue(ours == stock, '%s differs' % name)
        return ours == stock

    def same_records(self, tids=True):
        stock, ours = self.open(self.stock, read_only=True), self.open(self.ours, read_only=True)
        try:
            self.case.assertEqual(*(content(storage, tids) for storage in (ours, stock)))
            self.case.assertEqual(len(ours), len(stock))
        finally:
            stock.close()
            ours.close()

    def read_all(self, client):
        """The server, which has not been restarted since, serves what is in the file."""
        stock = self.open(self.stock, read_only=True)
        try:
            for oid in self.generator.oids:
                tids = [tid_at(n) for n in self.random.sample(range(self.generator.clock + 2), 2)]
                for before in tids + [maxtid]:
                    self.same_answer(client, stock, 'loadBefore', oid, before)
                self.same_answer(client, stock, 'history', oid, 1000)
                revisions = attempt(stock.history, oid, 1000)
                for revision in () if revisions == 'KeyError' else revisions:
                    tid = revision['tid']
                    self.same_answer(client, stock, 'loadSerial', oid, tid)
                    if self.generator.is_blob.get(oid):
                        self.case.assertEqual(blob(client, oid, tid), blob(stock, oid, tid))
            self.same_answer(client, stock, 'undoLog', 0, 1000)
        finally:
            stock.close()

    def same_answer(self, client, stock, method, *arguments):
        self.case.assertEqual(
            attempt(getattr(client, method), *arguments),
            attempt(getattr(stock, method), *arguments), (method, arguments))
        totals['answers'] += 1

    def add(self):
        """More transactions, by stock FileStorage to both."""
        count = self.random.choice([0, 1, 10, 30])
        state = self.generator.random.getstate()
        kept = dict(self.generator.__dict__)
        for directory in self.stock, self.ours:
            self.generator.__dict__.update(kept)
            self.generator.oids = list(kept['oids'])
            self.generator.known = set(kept['known'])
            self.generator.is_blob = dict(kept['is_blob'])
            self.generator.random.setstate(state)
            storage = self.open(directory)
            self.generator.run(storage, count)
            storage.close()
        self.same_files()

    def undo(self):
        """What can be undone after all that, by the server and by stock FileStorage."""
        storage = self.open(self.stock)
        log = storage.undoLog(0, 1000)
        ids = [entry['id'] for entry in log[:3] + log[-3:]]
        expected = [undone(storage, id_) for id_ in ids]
        storage.close()
        s = server.Server(self.ours, self.storages).start()
        client = ClientStorage(s.address, wait_timeout=20)
        try:
            found = [undone(client, id_) for id_ in ids]
        finally:
            client.close()
            s.stop()
        self.case.assertEqual(found, expected)
        totals['undos'] += expected.count('undone')
        totals['undos refused'] += len(expected) - expected.count('undone')
        self.same_records(tids=False)


def tearDownModule():
    print('# %s' % '; '.join('%d %s' % (n, what) for what, n in sorted(totals.items())))
    if totals['packs that dropped something'] + totals['packs that had nothing to drop'] > 50:
        assert totals['packs that dropped something'] > 20, 'the databases are no good'


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
    """All that is in a storage; without *tids*, with numbers in place of new ones."""
    last = tid_at(1000000)
    numbers = {}

    def shown(tid):
        if tids or tid is None or tid < last:
            return tid
        return numbers.setdefault(tid, len(numbers))

    return [(shown(txn.tid), txn.status, txn.user, txn.description, txn.extension_bytes,
             [(r.oid, shown(r.tid), shown(r.data_txn), r.data) for r in txn])
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


def undone(storage, id_):
    t = TransactionMetaData('undoer', 'undo')
    storage.tpc_begin(t)
    try:
        storage.undo(id_, t)
        storage.tpc_vote(t)
    except POSError as error:
        storage.tpc_abort(t)
        return type(error).__name__
    storage.tpc_finish(t)
    return 'undone'


if __name__ == '__main__':
    server.main()
