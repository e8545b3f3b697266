"""Undo, restore and delete: the same transactions written by the server and by stock ZODB.

    undo.py                     # UNDO_SEED=n repeats a failure, UNDO_SEEDS=n runs more seeds

Each test draws transactions at random: stores, undos (of one or several transactions, of undos, of
what was changed since), restored revisions with right and wrong hints, deletions. Each is done by a
ClientStorage on our server and by a FileStorage on another file, with the same tids. Both must take
it or refuse it for the same reason; then the files are compared, byte by byte as long as that can
be, and always record by record, and so is what can be read. In the middle stock ZODB goes on with
our file, and the server with that.
"""
import logging
import os
import random
import shutil
import tempfile
import unittest

from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ServerException
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from ZODB.POSException import MultipleUndoErrors
from ZODB.POSException import POSKeyError
from ZODB.POSException import UndoError
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import u64
from ZODB.utils import z64

import server

FIRST_TID = 0x040d276f0b16d533
OBJECTS = 8
STEPS = 70

# A class that resolves no conflicts.
CLASS = b'\x80\x03cpersistent\nPersistent\nq\x00.'


def record(value):
    return CLASS + b'\x80\x03X' + len(value).to_bytes(4, 'little') + value.encode() + b'.'


def encoded(tid):
    """The id of a transaction in an undo log."""
    import base64
    return base64.b64encode(tid)


class History:
    """What a file says, with tids in the place of positions."""

    def __init__(self, path):
        self.txns = []              # (tid, [Record], the head as it is in the file)
        self.current = {}           # oid: Record
        at = {}                     # position: Record
        with open(path, 'rb') as f:
            self.bytes = f.read()
        pos = 4
        while pos < len(self.bytes):
            tid = self.bytes[pos:pos + 8]
            length = self.number(pos + 8)
            texts = sum(int.from_bytes(self.bytes[pos + n:pos + n + 2], 'big')
                        for n in (17, 19, 21))
            end = pos + length
            assert self.number(end) == length
            here = pos + 23 + texts
            head = self.bytes[pos:pos + 8] + self.bytes[pos + 16:here]
            records = {}
            while here < end:
                found = Record(self, here, at)
                assert found.tid == tid and found.tloc == pos
                records.pop(found.oid, None)
                records[found.oid] = at[here] = found
                here = found.end
            assert here == end
            self.current.update(records)
            self.txns.append((tid, list(records.values()), head))
            pos = end + 8
        assert pos == len(self.bytes)

    def number(self, pos):
        return u64(self.bytes[pos:pos + 8])

    def facts(self):
        """One record an object and transaction, in any order: ZODB may write two."""
        return [(tid, head, sorted(record.facts() for record in records))
                for tid, records, head in self.txns]


class Record:

    def __init__(self, history, pos, at):
        self.oid = history.bytes[pos:pos + 8]
        self.tid = history.bytes[pos + 8:pos + 16]
        prev = history.number(pos + 16)
        # An object's records are linked without gaps.
        self.prev = at[prev].tid if prev else None
        assert not prev or at[prev].oid == self.oid
        self.tloc = history.number(pos + 24)
        length = history.number(pos + 34)
        start = pos + 42
        self.back = self.own = None
        if length:
            self.end = start + length
            self.own = self.data = history.bytes[start:self.end]
        else:
            self.end = start + 8
            back = history.number(start)
            self.back = at[back].tid if back else z64
            assert not back or at[back].oid == self.oid
            self.data = at[back].data if back else None

    def facts(self):
        return self.oid, self.tid, self.prev or z64, self.back or b'', self.own or b''


class Draw:
    """Draws the next transaction, knowing what is in the file."""

    def __init__(self, seed, overlap):
        self.random = random.Random(seed)
        self.tid = FIRST_TID
        self.overlap = overlap      # whether two operations may meet in an object

    def step(self, history):
        self.history = history
        self.tid += self.random.randrange(1, 1 << 34)
        kinds = [self.stores, self.stores, self.stores, self.undo, self.undo, self.undo_last,
                 self.undos, self.restores, self.deletes]
        if self.overlap:
            kinds.append(self.mixture)
        operations = self.random.choice(kinds if len(history.txns) > 3 else [self.stores])()
        return p64(self.tid), operations

    def serial(self, oid):
        found = self.history.current.get(oid)
        return found.tid if found else z64

    def some_oids(self):
        count = self.random.choice((1, 1, 2, 5))
        return [p64(n) for n in self.random.sample(range(OBJECTS), count)]

    def store(self, oid):
        serial = self.serial(oid)
        if self.random.randrange(30) == 0:
            serial = p64(u64(serial) + 1)
        # There are so few values that some come back.
        value = self.random.choice('abc') * self.random.choice((1, 1, 1, 3000))
        return 'store', oid, serial, record(value)

    def stores(self):
        return [self.store(oid) for oid in self.some_oids()]

    def one_of_the_last(self):
        return self.random.choice(self.history.txns[-8:])

    def undo(self):
        tid = self.one_of_the_last()[0]
        if self.random.randrange(20) == 0:
            tid = p64(u64(tid) + 1)
        return [('undo', encoded(tid))]

    def undo_last(self):
        return [('undo', encoded(self.history.txns[-1][0]))]

    def undos(self):
        """The last ones, or some of them, in a good order or a bad one."""
        txns = self.history.txns[-self.random.choice((2, 2, 3, 5)):][::-1]
        if self.random.randrange(4) == 0:
            self.random.shuffle(txns)
        if not self.overlap:
            taken, chosen = set(), []
            for txn in txns:
                oids = {record.oid for record in txn[1]}
                if not oids & taken:
                    taken |= oids
                    chosen.append(txn)
            txns = chosen
        return [('undo', encoded(tid)) for tid, _, _ in txns]

    def restores(self):
        operations = []
        for oid in self.some_oids():
            hint, data = None, record(self.random.choice('abcd'))
            revisions = [record for _, records, _ in self.history.txns[-20:]
                         for record in records if record.oid == oid]
            if revisions and self.random.randrange(4):
                same = self.random.choice(revisions)
                hint = same.tid
                # What ZODB trusts in without looking has to be right.
                if self.random.randrange(4) or same.own is None:
                    data = same.data
                if data is None and same.own is not None:
                    hint = None
            elif self.random.randrange(4) == 0:
                data = None
            elif self.random.randrange(4) == 0 and revisions:
                hint = self.history.txns[0][0]
                if hint in {record.tid for record in revisions}:
                    hint = None
            operations.append(('restore', oid, p64(self.tid), data, hint))
        return operations

    def deletes(self):
        operations = []
        for oid in self.some_oids():
            serial = self.serial(oid)
            if self.random.randrange(10) == 0:
                serial = p64(u64(serial) + 1)
            operations.append(('delete', oid, serial))
        if self.random.randrange(6) == 0:
            operations.append(('delete', p64(OBJECTS), z64))
        return operations

    def mixture(self):
        """Undos and stores in any order."""
        undone = self.one_of_the_last()
        operations = [('undo', encoded(undone[0]))]
        operations += [self.store(oid) for oid in self.some_oids()]
        self.random.shuffle(operations)
        return operations


def perform(storage, tid, operations):
    """Do it, and say what came of it: in the same words for both storages."""
    txn = TransactionMetaData('user %d' % (u64(tid) % 7), 'text', {})
    storage.tpc_begin(txn, tid, ' ')
    try:
        for name, *args in operations:
            if name == 'store':
                oid, serial, data = args
                storage.store(oid, serial, data, '', txn)
            elif name == 'restore':
                oid, serial, data, hint = args
                storage.restore(oid, serial, data, '', hint, txn)
            elif name == 'delete':
                storage.deleteObject(args[0], args[1], txn)
            else:
                storage.undo(args[0], txn)
        storage.tpc_vote(txn)
        assert storage.tpc_finish(txn) == tid
    except MultipleUndoErrors as error:
        said = ('cannot be undone', sorted(oid for oid, _ in error._errs))
    except UndoError:
        said = 'no such transaction',
    except POSKeyError as error:
        said = 'no such object', error.args[0]
    except ConflictError as error:
        said = 'conflict', error.oid, error.serials
    except ServerException as error:
        assert error.args[0] == 'ZODB.POSException.UndoError', error
        said = 'no such transaction',
    else:
        return 'done',
    storage.tpc_abort(txn)
    return said


def asked(function, *args):
    """An answer, or that there is none."""
    try:
        return function(*args)
    except POSKeyError:
        return 'POSKeyError'


class Case(unittest.TestCase):

    msgpack = False
    overlap = False

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='standby-undo')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.ours = os.path.join(self.directory, 'Data.fs')
        self.stock = os.path.join(self.directory, 'stock', 'Data.fs')
        os.mkdir(os.path.dirname(self.stock))

    def test_the_server_writes_what_stock_ZODB_writes(self):
        self.outcomes = {}
        for seed in seeds():
            with self.subTest(seed=seed):
                self.begin_anew()
                self.run_seed(seed)
        if 'UNDO_SEED' in os.environ:
            return
        # All of it has happened.
        for outcome in ('done', 'cannot be undone', 'no such object', 'no such transaction',
                        'conflict'):
            self.assertGreater(self.outcomes.get(outcome, 0), 1, outcome)

    def begin_anew(self):
        for path in self.ours, self.stock:
            for suffix in '', '.index', '.oids', '.lock', '.tmp':
                if os.path.exists(path + suffix):
                    os.remove(path + suffix)

    def run_seed(self, seed):
        draw = Draw(seed, self.overlap)
        reference = FileStorage(self.stock)
        self.addCleanup(reference.close)
        for turn in 'server', 'stock', 'server':
            if turn == 'server':
                s = server.Server(self.directory, msgpack=self.msgpack).start()
                self.addCleanup(s.stop)
                storage, reader = (ClientStorage(s.address, wait_timeout=20) for _ in range(2))
                try:
                    self.go_on(draw, storage, reference)
                    # The other one is told of what it has in its cache. (The one that writes is
                    # not, and does not know by itself what it has restored or deleted.)
                    self.compare_answers(reader, reference)
                finally:
                    storage.close()
                    reader.close()
                s.stop()
            else:
                storage = FileStorage(self.ours)
                try:
                    self.go_on(draw, storage, reference)
                finally:
                    storage.close()
        reference.close()

    def go_on(self, draw, storage, reference):
        for _ in range(STEPS):
            tid, operations = draw.step(History(self.stock))
            wanted = perform(reference, tid, operations)
            got = perform(storage, tid, operations)
            # With several failures any of them may be told of first.
            if len(operations) > 1 and wanted[0] != 'done':
                self.assertNotEqual(got[0], 'done', operations)
            else:
                self.assertEqual(got, wanted, operations)
            self.outcomes[wanted[0]] = self.outcomes.get(wanted[0], 0) + 1
            if wanted[0] == 'done':
                ours, stock = History(self.ours), History(self.stock)
                # The server may have reserved space behind the end.
                self.assertEqual(ours.facts(), stock.facts(), operations)
                if not self.overlap:
                    self.assertTrue(ours.bytes == stock.bytes, operations)

    def compare_answers(self, storage, reference):
        history = History(self.stock)
        for n in range(OBJECTS):
            oid = p64(n)
            self.assertEqual(asked(storage.getTid, oid), asked(reference.getTid, oid))
            for tid in [maxtid] + [tid for tid, _, _ in history.txns]:
                for name in 'loadBefore', 'loadSerial':
                    got = asked(getattr(storage, name), oid, tid)
                    self.assertEqual(got, asked(getattr(reference, name), oid, tid), (name, n))
            if not self.overlap:
                self.assertEqual(list(storage.history(oid, 1000)), reference.history(oid, 1000))
        if not self.overlap:
            self.assertEqual(list(storage.undoLog(0, 1000)), reference.undoLog(0, 1000))
            self.assertEqual(list(storage.undoInfo(3, -5)), reference.undoInfo(3, -5))
        self.assertEqual(self.iterated(storage), self.iterated(reference))

    def iterated(self, storage):
        """As tools see it, with the last record of each object in a transaction."""
        return [
            (txn.tid, txn.status, txn.user, txn.description,
             sorted({record.oid: (record.oid, record.tid, record.data or b'',
                                  record.data_txn or b'') for record in txn}.values()))
            for txn in storage.iterator()]


class PickleTests(Case):
    """Byte by byte."""


class MsgpackTests(Case):

    msgpack = True


class OverlapTests(Case):
    """Operations of a transaction meet in its objects: ZODB writes two records, we one."""

    overlap = True


def seeds():
    if 'UNDO_SEED' in os.environ:
        return [int(os.environ['UNDO_SEED'])]
    return range(1, 1 + int(os.environ.get('UNDO_SEEDS', 3)))


del Case    # not a test by itself


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    server.main()
