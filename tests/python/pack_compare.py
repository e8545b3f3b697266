"""Packs of standbyd and of stock FileStorage, compared on generated databases.

    pack_compare.py [TEST ...]

Each database is packed, added to, and packed again, by both, each on a copy of its own. `PACK_SEED`
and `PACK_COUNT` choose other databases or more; a failure names its seed.
"""
import collections
import hashlib
import logging
import os
import random
import shutil
import tempfile
import unittest
import unittest.mock

from ZEO.ClientStorage import ClientStorage
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage import fspack
from ZODB.POSException import POSError
from ZODB.serialize import referencesf
from ZODB.utils import maxtid

import server
from histories import STEP
from histories import CorrectedGC
from histories import Generator
from histories import attempt
from histories import blob
from histories import content
from histories import read
from histories import tid_at
from histories import time_of
from histories import tree

SEED = int(os.environ.get('PACK_SEED', 1))
COUNT = int(os.environ.get('PACK_COUNT', 12))

totals = collections.Counter()


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

    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory(prefix='sb') as directory:
            s = server.Server(directory, '<filestorage 1>\n path Data.fs\n blob-dir blobs\n'
                              '</filestorage>')
            try:
                s.start()
            except AssertionError as error:
                if 'blobs are not supported' in str(error):
                    raise unittest.SkipTest('the server has no blobs')
                raise
            s.stop()


for seed_ in range(SEED, SEED + COUNT):
    for name, gc_, keep_old_ in [
            ('gc', True, True), ('no_gc', False, True), ('gc_keeping_nothing', True, False)]:
        setattr(Case, 'test_%s_seed_%d' % (name, seed_),
                lambda self, s=seed_, g=gc_, k=keep_old_: self.compare(s, g, k))


class Comparison:
    """One database, packed by both."""

    def __init__(self, case, seed, directory, gc, keep_old, blobs):
        self.case = case
        self.gc = gc
        self.keep_old = keep_old
        self.blobs = blobs
        self.directory = directory
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

    def serve(self):
        s = server.Server(self.ours, self.storages)
        self.case.addCleanup(s.kill)    # in case of what is not expected
        s.start()
        cache = tempfile.mkdtemp(dir=self.directory) if self.blobs else None
        return s, ClientStorage(s.address, wait_timeout=20, blob_dir=cache)

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
        s, client = self.serve()
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
            # FileStorage removes the old ones when it begins; we, when there are others.
            self.same('Data.fs.old')
            self.same_tree('blobs.old')
            if self.keep_old:
                self.case.assertEqual(self.digest('Data.fs.old'), before)

    def pack_stock(self, when):
        """The last transaction, and whether it failed."""
        storage = self.open(self.stock)
        last = storage.lastTransaction()
        failed = False
        try:
            storage.pack(when, referencesf)
        except (KeyError, AssertionError, fspack.PackError):
            failed = True
        # It stays, even if its transaction is gone, until the storage is opened again.
        self.case.assertEqual(storage.lastTransaction(), last)
        storage.close()
        return last, failed

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
        self.same_tree('blobs')

    def same(self, name, must=True):
        stock, ours = (read(os.path.join(directory, name), must=False)
                       for directory in (self.stock, self.ours))
        if must:
            self.case.assertEqual(ours is None, stock is None, name)
            self.case.assertTrue(ours == stock, '%s differs' % name)
        return ours == stock

    def same_tree(self, name):
        if self.blobs:
            stock, ours = (tree(os.path.join(d, name)) for d in (self.stock, self.ours))
            self.case.assertEqual(ours, stock, name)
            totals['files in ' + name] += len(stock)

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
        s, client = self.serve()
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
