"""A server that follows another one: stock runzeo of ZEO 6.2 and 5.4, and our own.

    follow.py [-k PATTERN]

Writers work at the source; readers are clients of the copy. In the end both are read transaction
by transaction, and have to be the same.
"""
import datetime
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import unittest

import server
from server import REFERENCE
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))
sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

import certificates  # noqa: E402
import environment  # noqa: E402 (in the directory above)
import matrix  # noqa: E402
import transaction  # noqa: E402
import ZEO  # noqa: E402
import ZODB  # noqa: E402
import ZODB.blob  # noqa: E402
from BTrees.Length import Length  # noqa: E402
from persistent.mapping import PersistentMapping  # noqa: E402
from ZEO.Exceptions import ClientDisconnected  # noqa: E402
from ZEO.Exceptions import ServerException  # noqa: E402
from ZODB.FileStorage import FileStorage  # noqa: E402
from ZODB.POSException import ConflictError  # noqa: E402
from ZODB.POSException import POSKeyError  # noqa: E402
from ZODB.POSException import ReadOnlyError  # noqa: E402
from ZODB.POSException import UndoError  # noqa: E402
from ZODB.utils import u64  # noqa: E402
from ZODB.utils import z64  # noqa: E402
from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)
from harness.rawclient import record  # noqa: E402

STORAGE = '<filestorage 1>\n  path Data.fs\n  blob-dir blobs\n</filestorage>\n'
FOLLOW = '<follow>\n  server %s\n</follow>\n'


class Case(unittest.TestCase):

    source_command = REFERENCE
    source_wrapper = ()
    msgpack = False

    def setUp(self):
        self.base = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        for name in 'source', 'copy':
            os.mkdir(os.path.join(self.base, name))
        # If a stock server leaves conflicts to its clients, some of these finish without a vote.
        self.source = server.Server(
            self.path('source'), STORAGE, command=self.source_command,
            wrapper=self.source_wrapper, msgpack=self.msgpack,
            **{'client-conflict-resolution': str(self.source_command is None).lower()})
        self.copy = server.Server(
            self.path('copy'), self.following(), **{'invalidation-queue-size': '10000'})
        self.addCleanup(self.copy.kill)
        self.addCleanup(self.source.kill)

    def following(self, *more):
        addresses = [self.source.address, *more]
        return STORAGE + FOLLOW % ' '.join('%s:%d' % address for address in addresses)

    def path(self, *names):
        return os.path.join(self.base, *names)

    def database(self, at, **options):
        blobs = tempfile.mkdtemp(dir=self.base)
        options = dict({'wait_timeout': 30, 'blob_dir': blobs}, **options)
        db = ZEO.DB(at.address if isinstance(at, server.Server) else at, **options)
        self.addCleanup(db.storage.close)
        return db

    def last(self, at):
        """The last tid, as a health check says it."""
        return status(at.address)['1']['last-transaction']

    def level(self):
        return self.last(self.source) == self.last(self.copy)

    def log(self):
        with open(self.copy.log, errors='replace') as f:
            return f.read()

    def compare(self):
        """Both servers have stopped: what they have left is the same."""
        source, copy = (list(transactions(self.path(name))) for name in ('source', 'copy'))
        for theirs, ours in zip(source, copy):
            self.assertEqual(theirs, ours)
        self.assertEqual(len(source), len(copy))
        return len(source)

    def stop_both(self):
        eventually(self.level, 60)
        self.copy.stop()
        self.source.stop()


def status(address):
    import json
    with server.dial(address) as s:
        s.sendall(b'\0\0\0\4ruok')
        data = b''
        while True:
            got = s.recv(1 << 16)
            if not got:
                break
            data += got
    return json.loads(data[10:])


def transactions(directory):
    """What a data file has, with the blobs."""
    layout = ZODB.blob.BushyLayout()
    storage = FileStorage(os.path.join(directory, 'Data.fs'), read_only=True)
    for txn in storage.iterator():
        records = {}
        for r in txn:
            blob = None
            if r.data and ZODB.blob.is_blob_record(r.data):
                path = os.path.join(directory, 'blobs', layout.getBlobFilePath(r.oid, r.tid))
                if os.path.exists(path):
                    with open(path, 'rb') as f:
                        blob = f.read()
            # Of an object that is stored twice in a transaction only the last one is kept.
            records[r.oid] = r.tid, r.data, r.data_txn if r.data else None, blob
        yield txn.tid, txn.status, txn.user, txn.description, txn.extension, records
    storage.close()


class Work:
    """Writers at the source, of many kinds, until they are stopped."""

    def __init__(self, case, address, count=3):
        self.stopped = threading.Event()
        self.errors = []
        self.commits = self.conflicts = self.undone = 0     # the last one by who is `undoing`
        self.lock = threading.Lock()
        self.undoing = threading.Lock()
        self.databases = [case.database(address, wait_timeout=60) for _ in range(count)]
        with self.databases[0].transaction() as c:
            if 'count' not in c.root():
                c.root()['count'] = Length()
                c.root()['plain'] = PersistentMapping()
                for n in range(count):
                    c.root()[n] = PersistentMapping()
        for db in self.databases:
            eventually(lambda: self.sees_all(db))
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def sees_all(self, db):
        with db.transaction() as c:
            return 'count' in c.root()

    def run(self, n):
        db = self.databases[n]
        i = 0
        while not self.stopped.is_set():
            i += 1
            try:
                self.step(db, n, i)
                with self.lock:
                    self.commits += 1
            except ConflictError:
                with self.lock:
                    self.conflicts += 1
            except (ClientDisconnected, UndoError, POSKeyError):
                time.sleep(.05)         # what is undone may have been packed, too
            except ServerException as error:
                if not re.search('Undo is currently disabled|UndoError', str(error)):
                    self.errors.append(repr(error))
                    return
            except Exception as error:
                self.errors.append(repr(error))
                return
            time.sleep(.002)

    def step(self, db, n, i):
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        try:
            root = connection.root()
            root['count'].change(1)
            mine = root[n]
            if i % 5 == 0:
                mine['blob%d' % (i % 20)] = ZODB.blob.Blob(b'%d %d ' % (n, i) * (i % 7 * 3000))
            elif i % 5 == 1:
                root['plain'][i % 3] = i            # others do the same: conflicts
            elif i % 5 == 2:
                mine['x' * (i % 9)] = PersistentMapping({'n': i})
            elif i % 5 == 3 and mine:
                mine.pop(sorted(mine)[0])
            txn = manager.get()
            txn.note('step %d of %d – é' % (i, n))
            txn.setUser('user%d' % n)
            txn.setExtendedInfo('where', ('/some/path', i, {'é': None}))
            manager.commit()
            if i % 11 == 0:
                log = db.undoLog(0, 3)
                mine = [entry for entry in log if 'of %d ' % n in entry['description']]
                if mine:
                    with self.undoing:
                        db.undo(mine[0]['id'], manager.get())
                        manager.commit()
                        self.undone += 1
        finally:
            manager.abort()
            connection.close()

    def pack(self):
        """Pack the source, while nobody undoes.

        A pack by FileStorage fails (PackError: Invalid backpointer transaction id), and changes
        nothing, if an undo that comes behind its first phase goes back to what it does not keep.
        """
        with self.undoing:
            self.databases[0].pack()

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        for db in self.databases:
            db.close()
        assert not self.errors, self.errors

    def has_done(self, more):
        goal = self.commits + more
        eventually(lambda: self.commits >= goal or self.errors, 60)


class Reader(threading.Thread):
    """A client of the copy: what it reads never goes back."""

    def __init__(self, case):
        super().__init__()
        self.db = case.database(case.copy, read_only=True, wait_timeout=60)
        self.stopped = threading.Event()
        self.seen = 0
        self.changes = 0
        self.errors = []
        self.start()

    def run(self):
        while not self.stopped.is_set():
            try:
                self.read()
            except ClientDisconnected:
                pass
            except Exception as error:
                self.errors.append(repr(error))
                return
            time.sleep(.01)

    def read(self):
        with self.db.transaction() as connection:
            count = connection.root().get('count')
            if count is None:
                return
            tid = u64(connection._storage._start)
            if tid < self.seen:
                self.errors.append('reads went back')
            self.changes += tid > self.seen
            self.seen = tid
            # All of it can be loaded, blobs too.
            for n in range(3):
                for key, value in sorted(connection.root()[n].items()):
                    if isinstance(value, ZODB.blob.Blob):
                        with value.open() as f:
                            f.read()
                    else:
                        dict(value)

    def stop(self):
        self.stopped.set()
        self.join()
        self.db.close()
        assert not self.errors, self.errors


class Stock62Tests(Case):

    def test_all_that_is_written_is_here_too(self):
        self.source.start()
        self.copy.start()
        work = Work(self, self.source)
        eventually(self.has_begun)
        reader = Reader(self)
        work.has_done(150)
        # Who follows is killed, and goes on from where it was.
        for _ in range(2):
            self.copy.kill()
            work.has_done(30)
            self.copy.start()
            work.has_done(60)
        # The source is packed, and started again.
        work.pack()
        work.has_done(60)
        self.source.stop()
        eventually(lambda: 'gone (' in self.log())
        self.source.start()
        work.has_done(60)
        work.stop()
        eventually(self.level, 60)
        final = int(self.last(self.source), 16)
        eventually(lambda: reader.seen > final)
        reader.stop()
        self.assertGreater(reader.changes, 20)
        self.stop_both()
        # What was packed away there is still here, and not what followed.
        packed, ours = (list(transactions(self.path(name))) for name in ('source', 'copy'))
        at = [txn[0] for txn in ours]
        for txn in packed:
            mine = ours[at.index(txn[0])]
            if txn[1] == ' ':
                self.assertEqual(mine, txn)
            else:
                for oid, (tid, data, _, blob) in txn[5].items():
                    self.assertEqual((tid, data, blob), mine[5][oid][:2] + mine[5][oid][3:])
        # Whatever was not packed there is there, and nothing else is here.
        first = next(txn[0] for txn in packed if txn[1] == ' ')
        self.assertEqual([tid for tid in at if tid >= first],
                         [txn[0] for txn in packed if txn[0] >= first])
        print('# %d commits, %d conflicts, %d undone; %d transactions here' % (
            work.commits, work.conflicts, work.undone, len(ours)))
        self.assertGreater(min(work.conflicts, work.undone), 0)

    def has_begun(self):
        return self.last(self.copy) != '0' * 16

    def test_a_copy_of_what_is_there_already_is_the_same(self):
        self.write_directly()
        self.source.start()
        work = Work(self, self.source)
        work.has_done(200)
        work.stop()
        self.copy.start()
        self.stop_both()
        self.assertGreater(self.compare(), 150)
        # Oids that the source's clients may have taken are left out.
        with open(self.path('copy', 'Data.fs.oids')) as f:
            self.assertGreater(int(f.read().split()[3], 16), 1 << 19)
        # It serves as any file does, also to stock ZODB.
        self.copy.storages = STORAGE
        self.copy.start()
        with self.database(self.copy).transaction() as connection:
            connection.root()['now'] = 1
        self.copy.stop()
        self.assertEqual(len(list(transactions(self.path('copy')))),
                         1 + len(list(transactions(self.path('source')))))

    def write_directly(self):
        """What no client of a stock server can: an extension with an instance in it."""
        storage = FileStorage(self.path('source', 'Data.fs'))
        db = ZODB.DB(storage)
        with db.transaction() as connection:
            transaction.get()
            connection.root()['x'] = 1
            when = datetime.datetime(2026, 11, 22)
            connection.transaction_manager.get().setExtendedInfo('when', when)
        db.close()

    def test_readers_are_told_and_keep_what_did_not_change(self):
        self.source.start()
        self.copy.start()
        writer = self.database(self.source)
        with writer.transaction() as c:
            c.root()['a'], c.root()['b'] = PersistentMapping(), PersistentMapping()
        eventually(self.level)
        reader = self.database(self.copy, read_only=True)
        connection = reader.open()
        self.addCleanup(connection.close)
        dict(connection.root()['a']), dict(connection.root()['b'])
        for n in range(20):
            with writer.transaction() as c:
                c.root()['a']['n'] = n
            eventually(lambda: self.seen(connection) == n)
        self.assertEqual(status(self.copy.address)['1']['loads'] <= 23, True)
        connection.close()

    @staticmethod
    def seen(connection):
        connection.sync()
        return connection.root()['a'].get('n')

    def test_nobody_else_may_write(self):
        self.source.start()
        self.copy.start()
        with self.database(self.source).transaction() as c:
            c.root()['x'] = 1
        eventually(self.level)
        with self.assertRaises(ClientDisconnected):
            self.database(self.copy, wait_timeout=2)
        reader = self.database(self.copy, read_only_fallback=True)
        with self.assertRaises(ReadOnlyError):
            with reader.transaction() as c:
                c.root()['x'] = 2
        # Nor pack it: what the source undoes might be gone.
        eventually(lambda: status(self.copy.address)['1']['following'] == 'level')
        before = self.bytes_of('copy')
        with self.assertRaises(ReadOnlyError):
            reader.pack()
        self.assertEqual(self.bytes_of('copy'), before)

    def test_a_damaged_source_is_not_level(self):
        self.source.start()
        db = self.database(self.source)
        for n in range(10):
            with db.transaction() as c:
                c.root()['x'] = n
        db.close()
        self.source.stop()
        # An iterator takes the fifth for one that is not finished, and the server does not look.
        storage = FileStorage(self.path('source', 'Data.fs'), read_only=True)
        at = [txn._tpos for txn in storage.iterator()][5] + 16
        storage.close()

        def write(status):
            with open(self.path('source', 'Data.fs'), 'r+b') as f:
                f.seek(at)
                f.write(status)

        write(b'c')
        self.source.start()
        self.copy.start()
        eventually(lambda: 'NOT level: it has told of' in self.log())
        self.assertNotIn(': level with', self.log())
        self.assertEqual(status(self.copy.address)['1']['following'], 'short')
        write(b' ')
        eventually(lambda: ': level with' in self.log(), 60)
        self.stop_both()
        self.compare()

    def test_who_answers_and_is_no_server_hides_none(self):
        listener = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(listener.close)
        taken = []

        def hang_up():
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return
                taken.append(1)

        threading.Thread(target=hang_up, daemon=True).start()
        follow = FOLLOW % '%s:%d %s:%d' % (*listener.getsockname(), *self.source.address)
        self.copy.storages = STORAGE + follow
        self.source.start()
        self.copy.start()
        with self.database(self.source).transaction() as c:
            c.root()['x'] = 1
        self.stop_both()
        self.assertTrue(taken)
        self.compare()

    def test_another_history_is_not_followed(self):
        self.source.start()
        work = Work(self, self.source)
        work.has_done(20)
        self.copy.start()
        eventually(self.has_begun)
        work.stop()
        self.stop_both()
        for name, change in (('other', self.make_other), ('older', self.make_older)):
            shutil.copytree(self.path('source'), self.path('kept'))
            change()
            before = self.bytes_of('copy')
            self.source.start()
            self.copy.start()
            if name == 'older':
                # It may have as much later; when it goes on, it has something else.
                eventually(lambda: 'it is behind' in self.log())
                self.assertNotIn('following has stopped', self.log())
                with self.database(self.source).transaction() as c:
                    c.root()['y'] = 1
            eventually(lambda: 'following has stopped' in self.log())
            eventually(lambda: status(self.copy.address)['1']['following'] == 'stopped')
            self.copy.stop()
            self.source.stop()
            self.assertEqual(self.bytes_of('copy'), before, name)
            self.assertIn('its history is another one', self.log())
            os.remove(self.copy.log)
            shutil.rmtree(self.path('source'))
            os.rename(self.path('kept'), self.path('source'))
        # The right one is followed on.
        self.source.start()
        self.copy.start()
        with self.database(self.source).transaction() as c:
            c.root()['more'] = 1
        self.stop_both()
        self.compare()

    def bytes_of(self, name):
        with open(self.path(name, 'Data.fs'), 'rb') as f:
            return f.read()

    def make_other(self):
        for name in os.listdir(self.path('source')):
            if name.startswith('Data.fs'):
                os.remove(self.path('source', name))
        self.source.start()
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['x'] = 1
        db.close()
        self.source.stop()

    def make_older(self):
        """The last transaction is gone, as from a backup."""
        tids = [txn[0] for txn in transactions(self.path('source'))]
        storage = FileStorage(self.path('source', 'Data.fs'))
        pos = max(txn._tpos for txn in storage.iterator(tids[-1]))
        storage.close()
        with open(self.path('source', 'Data.fs'), 'r+b') as f:
            f.truncate(pos)
        os.remove(self.path('source', 'Data.fs.index'))

    def test_a_source_that_has_packed_what_was_last_here_is_followed_on(self):
        self.source.start()
        self.copy.start()
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['a'] = Length()
            c.root()['b'] = PersistentMapping()
        for n in range(5):
            with db.transaction() as c:
                c.root()['a'].change(1)
        eventually(self.level)
        self.copy.stop()
        last = self.last(self.source)
        for n in range(5):
            with db.transaction() as c:
                c.root()['a'].change(1)
                c.root()['b'][n] = PersistentMapping()
        db.pack()
        with db.transaction() as c:
            c.root()['a'].change(1)
        self.copy.start()
        eventually(self.level)
        db.close()
        self.stop_both()
        source, copy = (list(transactions(self.path(name))) for name in ('source', 'copy'))
        self.assertNotIn(last, [txn[0].hex() for txn in source])
        self.assertEqual(current(source), {
            oid: found for oid, found in current(copy).items() if oid in current(source)})

    def test_a_source_that_was_stopped_behind_a_vote_is_copied(self):
        self.source.start()
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['x'] = 1
        db.close()
        last = self.last(self.source)
        client = Raw(self.source.address)
        client.begin()
        client.store(client.call('new_oids')[0], z64, record())
        client.vote()
        # It has only the vote in its file, and takes its tid for the last one.
        self.source.kill()
        client.close()
        self.source.start()
        claimed = self.last(self.source)
        self.copy.start()
        eventually(lambda: status(self.copy.address)['1']['following'] == 'level')
        self.assertEqual(self.last(self.copy), last)
        said = 'takes %s for its last transaction, and its file ends with %s' % (claimed, last)
        self.assertEqual(self.log().count(said), int(claimed != last))
        if self.source_command is REFERENCE:
            self.assertNotEqual(claimed, last)
        self.assertNotIn('NOT level', self.log())
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['x'] = 2
        db.close()
        self.stop_both()
        self.compare()

    def test_a_blob_that_the_source_has_lost_holds_up_nothing(self):
        self.source.start()
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['lost'] = ZODB.blob.Blob(b'lost')
            c.root()['lost too'] = ZODB.blob.Blob(b'lost')
            c.root()['kept'] = ZODB.blob.Blob(b'kept')
        with db.transaction() as c:
            oids = [c.root()[name]._p_oid for name in ('lost', 'lost too')]
        for oid in oids:
            directory = ZODB.blob.BushyLayout().oid_to_path(oid)
            shutil.rmtree(self.path('source', 'blobs', directory))
        with db.transaction() as c:
            c.root()['more'] = 1
        db.close()
        self.copy.start()
        self.stop_both()
        self.compare()
        self.assertEqual(self.log().count('without its blob'), 2)

    def test_a_copy_without_room_for_blobs_says_so(self):
        self.source.start()
        db = self.database(self.source)
        with db.transaction() as c:
            c.root()['x'] = 1
        with db.transaction() as c:
            c.root()['blob'] = ZODB.blob.Blob(b'x')
        db.close()
        self.copy.storages = self.following().replace('  blob-dir blobs\n', '')
        self.copy.start()
        eventually(lambda: 'has no blob-dir' in self.log())
        self.copy.storages = self.following()
        self.copy.restart()
        self.stop_both()
        self.compare()

    def test_a_site_moves_while_its_clients_write(self):
        """As the manual says it, with the seconds that it takes."""
        elsewhere, new = (('127.0.0.1', server.free_port()) for _ in range(2))
        self.copy.storages = self.following(elsewhere)
        self.source.start()
        self.copy.start()
        clients = [Mover(self, [self.source.address, new]) for _ in range(5)]
        eventually(lambda: all(client.done > 20 for client in clients))
        eventually(self.caught_up)
        begun = time.monotonic()
        # The old server where nobody but the copy finds it.
        self.source.stop()
        self.source.address = elsewhere
        before = self.log().count('level with the source')
        self.source.start()
        eventually(lambda: self.log().count('level with the source') > before)
        # A stock server that is stopped between a vote and a finish counts one too many.
        eventually(lambda: self.level() or 'for its last transaction' in self.log())
        self.source.stop()
        self.copy.stop()
        self.copy.address, self.copy.storages = new, STORAGE
        self.copy.start()
        started = time.monotonic()
        eventually(lambda: all(c.acknowledged[-1][0] > started for c in clients), 60)
        seconds = sorted(client.first_after(begun) for client in clients)
        for client in clients:
            client.stop()
        print('# moved in %.1f s; first commits %s s after the old server was told to stop' % (
            started - begun, ', '.join('%.1f' % s for s in seconds)))
        self.assertEqual(sum(client.dropped for client in clients), 0)
        self.copy.stop()
        tids = [txn[0] for txn in transactions(self.path('copy'))]
        source = [txn[0] for txn in transactions(self.path('source'))]
        self.assertEqual(tids[:len(source)], source)
        # Nothing that was acknowledged, by whichever of the two, is lost.
        lost = {tid for client in clients for _, tid in client.acknowledged} - set(tids)
        self.assertEqual(lost, set())

    def caught_up(self):
        return 'level with the source' in self.log()


def current(history):
    found = {}
    for txn in history:
        for oid, (tid, data, _, blob) in txn[5].items():
            found[oid] = tid, data, blob
    return found


class Mover(threading.Thread):
    """A client that writes, wherever it may."""

    def __init__(self, case, addresses):
        super().__init__()
        self.db = case.database(addresses, wait_timeout=60)
        self.acknowledged = []
        self.stopped = threading.Event()
        self.errors = []
        self.dropped = 0
        storage = self.db.storage
        clear = storage._cache.clear

        def cleared():
            self.dropped += 1
            clear()
        storage._cache.clear = cleared
        self.start()

    @property
    def done(self):
        return len(self.acknowledged)

    def run(self):
        manager = transaction.TransactionManager()
        key = 'mover %s' % id(self)
        while not self.stopped.is_set():
            connection = self.db.open(manager)
            try:
                connection.root().setdefault(key, PersistentMapping())
                mine = connection.root()[key]
                mine['n'] = mine.get('n', 0) + 1
                manager.commit()
                self.acknowledged.append((time.monotonic(), mine._p_serial))
            except (ConflictError, ClientDisconnected, ReadOnlyError):
                pass
            except Exception as error:
                self.errors.append(repr(error))
                return
            finally:
                manager.abort()
                connection.close()
            time.sleep(.02)

    def first_after(self, begun):
        """When the longest pause ended."""
        times = [t for t, _ in self.acknowledged]
        gaps = [(b - a, b) for a, b in zip(times, times[1:])]
        return max(gaps)[1] - begun

    def stop(self):
        self.stopped.set()
        self.join()
        self.db.close()
        assert not self.errors, self.errors


@unittest.skipUnless(certificates.AVAILABLE, 'no openssl here')
class StockTlsTests(Case):

    def test_a_source_with_ssl_is_copied(self):
        maker = certificates.Maker(self.path('certificates'))
        maker.self_signed('server', 'subjectAltName=DNS:localhost')
        maker.self_signed('client')
        maker.self_signed('stranger')
        section = '<ssl>\n  certificate %s\n  key %s\n  authenticate %s\n</ssl>\n'

        def ssl(ours, theirs):
            return section % tuple(maker.path(name) for name in (
                ours + '.pem', ours + '-key.pem', theirs + '.pem'))

        db = ZODB.DB(FileStorage(self.path('source', 'Data.fs'),
                                 blob_dir=self.path('source', 'blobs')))
        for n in range(10):
            with db.transaction() as connection:
                connection.root()[n] = ZODB.blob.Blob(b'%d' % n * 100000)
        db.close()
        self.source.zeo = ssl('server', 'client')
        self.source.start()
        # Who is there is looked at by both sides.
        plain = self.following()
        for section_, why in ((ssl('stranger', 'server'), 'not reached'),
                              (ssl('client', 'stranger'), 'certificate is not known')):
            self.copy.storages = plain.replace('</follow>', section_ + '</follow>')
            self.copy.start()
            eventually(lambda: why in self.log())
            self.copy.stop()
            self.assertEqual(os.path.getsize(self.path('copy', 'Data.fs')), 4)
        self.copy.storages = plain.replace('</follow>', ssl('client', 'server') + '</follow>')
        self.copy.start()
        eventually(lambda: 'level with the source' in self.log())
        self.copy.stop()
        self.source.stop()
        self.assertEqual(self.compare(), 11)


class StockMsgpackTests(Case):

    msgpack = True

    def test_a_source_that_speaks_msgpack_is_copied(self):
        self.source.start()
        self.copy.start()
        db = self.database(self.source)
        for n in range(50):
            manager = transaction.TransactionManager()
            connection = db.open(manager)
            connection.root()[n % 7] = PersistentMapping({'n': n})
            connection.root()['blob'] = ZODB.blob.Blob(b'%d' % n * n)
            manager.get().setExtendedInfo('n', n)
            manager.commit()
            connection.close()
        db.close()
        self.stop_both()
        self.assertGreaterEqual(self.compare(), 50)


def stock_54():
    """How runzeo of ZEO 5.4 is started here; raises `Unavailable`."""
    path = matrix.packages((3, 8), '5.4')
    return ['env', 'PYTHONPATH=' + path], [matrix.FOUND[3, 8], '-m', 'ZEO.runzeo']


class Stock54Tests(Case):

    def setUp(self):
        try:
            wrapper, command = stock_54()
        except environment.Unavailable as reason:
            self.skipTest(str(reason))
        self.source_wrapper, self.source_command = wrapper, command
        super().setUp()

    test_all = Stock62Tests.test_all_that_is_written_is_here_too
    test_copy = Stock62Tests.test_a_copy_of_what_is_there_already_is_the_same
    has_begun = Stock62Tests.has_begun
    write_directly = Stock62Tests.write_directly


class OurOwnTests(Case):

    source_command = None

    test_copy = Stock62Tests.test_a_copy_of_what_is_there_already_is_the_same

    def write_directly(self):
        """Our own server does not tell of an extension that it cannot read."""


if __name__ == '__main__':
    server.main()
