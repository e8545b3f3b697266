"""Histories that stock FileStorage and standbyd have written in turns, compared with the same
histories written by stock FileStorage alone.

    turns_compare.py [TEST ...]

All kinds of transactions, with the same tids, and packs between them; the files have to be equal.
`TURNS_SEED` and `TURNS_COUNT` choose other histories or more.
"""
import collections
import contextlib
import logging
import os
import random
import shutil
import tempfile
import unittest
import unittest.mock

from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage import fspack
from ZODB.serialize import referencesf

import server
from histories import CorrectedGC
from histories import Generator
from histories import content
from histories import read
from histories import tid_at
from histories import time_of
from histories import tree
from pack_compare import BlobCase

SEED = int(os.environ.get('TURNS_SEED', 1))
COUNT = int(os.environ.get('TURNS_COUNT', 10))
STOCK, OURS = 'stock', 'ours'

totals = collections.Counter()


class Client(ClientStorage):
    """A client that asks for everything.

    After `restore` the client's own cache has the revision from before, with any server.
    """

    def tpc_finish(self, *arguments):
        tid = super().tpc_finish(*arguments)
        self._cache.clear()
        return tid


class Writer:
    """A history being written: by whom whose turn it is, or by stock FileStorage alone."""

    def __init__(self, seed, directory, blobs, shared, alone):
        self.directory = directory
        self.blobs = blobs
        self.shared = shared
        self.alone = alone
        os.makedirs(directory)
        self.generator = Generator(seed, directory, blobs)
        # The same for both writers: what comes when.
        self.random = random.Random(-seed)

    def write(self):
        for _ in range(self.random.choice([2, 4, 7])):
            who = self.random.choice([STOCK, OURS])
            count = self.random.choice([1, 5, 20])
            when = self.random.choice([None, None, self.random.random()])
            getattr(self, STOCK if self.alone else who)(count, when)

    def stock(self, count, when):
        storage = FileStorage(
            self.path('Data.fs'), blob_dir=self.path('blobs') if self.blobs else None)
        try:
            self.turn(storage, count, when)
        finally:
            storage.close()

    def ours(self, count, when):
        s = server.Server(self.directory, '<filestorage 1>\n path Data.fs\n %s\n</filestorage>' % (
            'blob-dir blobs' if self.blobs else ''))
        blob_dir = self.path('blobs' if self.shared else 'cache') if self.blobs else None
        try:
            s.start()
            with contextlib.closing(Client(
                    s.address, wait_timeout=20, blob_dir=blob_dir,
                    shared_blob_dir=self.shared)) as client:
                self.turn(client, count, when)
                totals['transactions by standbyd'] += count
            s.stop()
        finally:
            s.kill()

    def turn(self, storage, count, when):
        self.generator.run(storage, count)
        if when is not None:
            when = time_of(tid_at(int(when * (self.generator.clock + 2))))
            try:
                if isinstance(storage, ClientStorage):
                    storage.pack(when, wait=True)
                    totals['packs by standbyd'] += 1
                else:
                    storage.pack(when, referencesf)
            except Exception as error:
                # A dangling reference ends either pack, and so does a root that came later.
                if not any(word in repr(error) for word in ('KeyError', 'refer', 'no root')):
                    raise

    def path(self, *names):
        return os.path.join(self.directory, *names)


class Case(unittest.TestCase):

    blobs = False
    shared = False

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)

    def compare(self, seed):
        directories = []
        for alone in False, True:
            directory = os.path.join(self.directory, str(alone))
            directories.append(directory)
            with unittest.mock.patch.object(fspack, 'GC', CorrectedGC):
                Writer(seed, directory, self.blobs, self.shared, alone).write()
        totals['histories'] += 1
        if self.blobs:
            in_turns, alone = (blobs_with_records(d) for d in directories)
            self.assertEqual(in_turns, alone)
            totals['blobs'] += len(alone)
        in_turns, alone = (read(os.path.join(d, 'Data.fs')) for d in directories)
        if in_turns != alone:
            in_turns, alone = (
                FileStorage(os.path.join(d, 'Data.fs'), read_only=True) for d in directories)
            try:
                self.assertEqual(content(in_turns), content(alone))
            finally:
                in_turns.close()
                alone.close()
            totals['of them not equal byte for byte, but in all records'] += 1


def blobs_with_records(directory):
    """The blobs, but without those that FileStorage leaves behind when it aborts a transaction."""
    storage = FileStorage(os.path.join(directory, 'Data.fs'), read_only=True)
    records = {(r.oid, r.tid) for txn in storage.iterator() for r in txn}
    storage.close()

    def has_record(name):
        *oid, tid = name.split(os.sep)
        return (bytes(int(byte, 16) for byte in oid),
                bytes.fromhex(tid[2:].partition('.')[0])) in records

    found = tree(os.path.join(directory, 'blobs'))
    layout = os.path.join('.', '.layout')
    return {name: data for name, data in found.items() if name == layout or has_record(name)}


class StreamedBlobs(Case):

    blobs = True
    setUpClass = BlobCase.setUpClass


class SharedBlobs(StreamedBlobs):

    shared = True


del BlobCase    # its tests are not ours

for seed_ in range(SEED, SEED + COUNT):
    setattr(Case, 'test_seed_%d' % seed_, lambda self, s=seed_: self.compare(s))


def tearDownModule():
    print('# %s' % '; '.join('%d %s' % (n, what) for what, n in sorted(totals.items())))


if __name__ == '__main__':
    server.main()
