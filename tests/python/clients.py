"""What applications do, with the stock ZEO client."""
import contextlib
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import transaction
import ZODB
import ZODB.FileStorage
import ZODB.POSException
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.serialize import referencesf
from ZODB.utils import maxtid
from ZODB.utils import z64
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected

import server
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)

READ_ONLY = '<filestorage 1>\n  path Data.fs\n  read-only true\n</filestorage>\n'


class Case(unittest.TestCase):
    """Tests with one server, and clients that are closed at the end."""

    msgpack = False

    def setUp(self):
        # The name is short, since Unix sockets are in it.
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def serve(self, **options):
        s = server.Server(self.directory, msgpack=self.msgpack, **options)
        self.addCleanup(s.stop)
        return s.start()

    def client(self, server_, **options):
        """A storage, closed at the end of the test but before its server stops."""
        options.setdefault('wait_timeout', 20)
        options.setdefault('min_disconnect_poll', .1)
        storage = ClientStorage(options.pop('address', server_.address), **options)
        self.addCleanup(storage.close)
        return storage

    def database(self, server_, **options):
        db = ZODB.DB(self.client(server_, **options))
        self.addCleanup(db.close)
        return db

    def database_for_now(self, server_, **options):
        """A database to be closed before the test ends, as a cache has one user."""
        return contextlib.closing(ZODB.DB(self.client(server_, **options)))

    def path(self, *names):
        return os.path.join(self.directory, *names)


def connect(db):
    """A connection with a transaction manager of its own."""
    return db.open(transaction.TransactionManager())


def commit(connection):
    connection.transaction_manager.commit()


def abort(connection):
    connection.transaction_manager.abort()


def sees(connection, read, expected):
    """Does a new transaction of *connection* read what is expected?"""
    def look():
        connection.transaction_manager.begin()
        return read() == expected
    return look


def contents(storage):
    """{oid: (data, serial)} of what can be reached from the root."""
    found = {}
    todo = [z64]
    while todo:
        oid = todo.pop()
        if oid not in found:
            found[oid] = data, _ = storage.loadBefore(oid, b'\x7f' + b'\xff' * 7)[:2]
            todo += referencesf(data)
    return found


class PickleTests(Case):

    def test_example_of_the_README_works_as_printed(self):
        with open(os.path.join(server.PROJECT, 'README.md')) as f:
            examples = re.findall(r'^```python\n(.*?)^```', f.read(), re.M | re.S)
        self.assertTrue(examples, 'no example in README.md')
        s = self.serve()
        text = examples[0].replace('8100', str(s.address[1]))
        subprocess.run([sys.executable, '-c', text], check=True, timeout=60)

    def test_what_one_client_writes_another_reads(self):
        s = self.serve()
        one = connect(self.database(s))
        one.root()['tree'] = OOBTree({i: 'value %d' % i for i in range(1000)})
        one.root()['text'] = 'ä' * 1000
        commit(one)
        two = connect(self.database(s))
        self.assertEqual(dict(two.root()['tree']), {i: 'value %d' % i for i in range(1000)})
        self.assertEqual(two.root()['text'], 'ä' * 1000)

    def test_an_aborted_transaction_leaves_nothing(self):
        s = self.serve()
        one = connect(self.database(s))
        size = os.path.getsize(self.path('Data.fs'))
        one.root()['x'] = PersistentMapping()
        abort(one)
        storage = one.db().storage
        t = transaction.Transaction()
        storage.tpc_begin(t)
        storage.store(storage.new_oid(), z64, b'x' * 100000, '', t)
        storage.tpc_vote(t)
        storage.tpc_abort(t)
        self.assertNotIn('x', one.root())
        one.root()['y'] = 1
        commit(one)
        self.assertLess(os.path.getsize(self.path('Data.fs')) - size, 1000)

    def test_a_write_conflict_is_an_error_and_a_retry_succeeds(self):
        s = self.serve()
        one, two = connect(self.database(s)), connect(self.database(s))
        one.root()['x'] = 1
        commit(one)
        eventually(sees(two, lambda: two.root().get('x'), 1))
        one.root()['x'] = 2
        two.root()['x'] = 3
        commit(one)
        self.assertRaises(ZODB.POSException.ConflictError, commit, two)
        abort(two)
        eventually(sees(two, lambda: two.root()['x'], 2))
        two.root()['x'] = 3
        commit(two)
        eventually(sees(one, lambda: one.root()['x'], 3))

    def test_conflicts_of_BTrees_and_counters_are_resolved_by_the_client(self):
        s = self.serve()
        one, two = connect(self.database(s)), connect(self.database(s))
        one.root()['tree'] = OOBTree({0: 'zero', 100: 'hundred'})
        one.root()['count'] = Length(10)
        commit(one)
        eventually(sees(two, lambda: 'tree' in two.root(), True))
        for key, connection in (1, one), (2, two):
            connection.root()['tree'][key] = 'added'
            connection.root()['count'].change(key)
        commit(one)
        commit(two)
        for connection in one, two:
            eventually(sees(connection, lambda: sorted(connection.root()['tree']),
                            [0, 1, 2, 100]))
            self.assertEqual(connection.root()['count'](), 13)

    def test_a_read_conflict_is_reported(self):
        s = self.serve()
        one, two = connect(self.database(s)), connect(self.database(s))
        one.root()['a'], one.root()['b'] = PersistentMapping(), PersistentMapping()
        commit(one)
        eventually(sees(two, lambda: 'b' in two.root(), True))
        # Only of an object that was loaded it is known which revision was read.
        self.assertEqual(len(two.root()['a']), 0)
        two.readCurrent(two.root()['a'])
        two.root()['b']['x'] = 1
        one.root()['a']['x'] = 1
        commit(one)
        self.assertRaises(ZODB.POSException.ReadConflictError, commit, two)

    def test_a_reader_keeps_its_snapshot_until_its_transaction_ends(self):
        s = self.serve()
        writer, reader = connect(self.database(s)), connect(self.database(s))
        for name in 'a', 'b':
            writer.root()[name] = PersistentMapping(n=0)
        commit(writer)
        eventually(sees(reader, lambda: 'b' in reader.root(), True))
        self.assertEqual(reader.root()['a']['n'], 0)
        for name in 'a', 'b':
            writer.root()[name]['n'] = 1
        commit(writer)
        # Let the invalidation arrive: the newest tid of the client is the writer's.
        newest = writer.db().storage.lastTransaction()
        eventually(lambda: reader.db().storage.lastTransaction() == newest)
        self.assertEqual([reader.root()[name]['n'] for name in ('a', 'b')], [0, 0])
        reader.transaction_manager.begin()
        self.assertEqual([reader.root()[name]['n'] for name in ('a', 'b')], [1, 1])

    def test_clients_reconnect_after_a_restart_and_verify_their_cache(self):
        s = self.serve()
        idle = connect(self.database(s, client='idle', var=self.directory))
        writer = connect(self.database(s))
        writer.root()['x'] = 1
        commit(writer)
        eventually(sees(idle, lambda: idle.root().get('x'), 1))
        s.stop()
        self.assertEqual(idle.root()['x'], 1)
        s.start()
        eventually(lambda: can_commit(writer, 'x', 2))
        eventually(lambda: reads(idle, 'x', 2))

    def test_the_cache_is_verified_if_transactions_were_committed_meanwhile(self):
        s = self.serve()
        with self.database_for_now(s, client='one', var=self.directory) as db:
            one = connect(db)
            one.root()['x'] = PersistentMapping(n=1)
            one.root()['y'] = PersistentMapping(n=1)
            commit(one)
        two = connect(self.database(s))
        two.root()['x']['n'] = 2
        commit(two)
        before = two.db().storage.server_status()['loads']
        one = connect(self.database(s, client='one', var=self.directory))
        self.assertEqual(one.root()['x']['n'], 2)
        self.assertEqual(one.root()['y']['n'], 1)
        # Of three objects in the cache only the changed one is fetched again.
        self.assertEqual(two.db().storage.server_status()['loads'] - before, 1)

    def test_oids_are_not_repeated_after_a_restart(self):
        s = self.serve()
        one, two = self.client(s), self.client(s)
        given = [one.new_oid(), two.new_oid()]
        s.restart()
        eventually(lambda: server.answers(one) and server.answers(two))
        # Both have a pool of oids from before; what a third gets must not be in it.
        three = self.client(s)
        for storage in one, two, three:
            given += [storage.new_oid() for _ in range(300)]
        self.assertEqual(len(set(given)), len(given))

    def test_oids_are_not_repeated_after_a_crash(self):
        s = self.serve()
        one = self.client(s)
        given = [one.new_oid()]
        s.kill()
        s.start()
        eventually(lambda: server.answers(one))
        two = self.client(s)
        for storage in one, two:
            given += [storage.new_oid() for _ in range(300)]
        self.assertEqual(len(set(given)), len(given))

    def test_a_read_only_client_reads_and_is_refused_to_write(self):
        s = self.serve()
        writer = connect(self.database(s))
        writer.root()['x'] = 1
        commit(writer)
        reader = connect(self.database(s, read_only=True))
        self.assertEqual(reader.root()['x'], 1)
        reader.root()['x'] = 2
        self.assertRaises(ZODB.POSException.ReadOnlyError, commit, reader)

    def test_a_client_falls_back_to_a_read_only_server_and_comes_back(self):
        s = self.serve()
        with self.database_for_now(s) as db:
            one = connect(db)
            one.root()['x'] = 1
            commit(one)
        s.stop()
        s.storages = READ_ONLY
        s.start()
        fallback = connect(self.database(s, read_only_fallback=True))
        self.assertTrue(fallback.isReadOnly())
        self.assertEqual(fallback.root()['x'], 1)
        s.stop()
        s.storages = server.STORAGE
        s.start()
        eventually(lambda: can_commit(fallback, 'x', 2))

    def test_two_storages_of_one_server_are_apart(self):
        s = self.serve(storages=''.join(
            '<filestorage %s>\n  path %s.fs\n</filestorage>\n' % (name, name)
            for name in ('left', 'right')))
        left = connect(self.database(s, storage='left'))
        right = connect(self.database(s, storage='right'))
        left.root()['x'] = 'left'
        commit(left)
        right.root()['x'] = 'right'
        commit(right)
        self.assertEqual(left.root()['x'], 'left')
        # A transaction of one storage does not hold up the other.
        t = transaction.Transaction()
        storage = self.client(s, storage='left')
        storage.tpc_begin(t)
        storage.tpc_vote(t)
        right.root()['y'] = 1
        commit(right)
        storage.tpc_abort(t)

    def test_clients_use_a_Unix_socket(self):
        s = self.serve(address=self.path('zeo.sock'))
        one = connect(self.database(s))
        one.root()['x'] = 1
        commit(one)
        s.restart()
        eventually(lambda: can_commit(one, 'x', 2))

    def test_what_is_in_the_persistent_cache_is_not_loaded_again(self):
        s = self.serve()
        with self.database_for_now(s, client='cache', var=self.directory) as db:
            one = connect(db)
            for i in range(50):
                one.root()[i] = PersistentMapping(n=i)
            commit(one)
        watcher = self.client(s)
        before = watcher.server_status()['loads']
        one = connect(self.database(s, client='cache', var=self.directory))
        self.assertEqual(sum(one.root()[i]['n'] for i in range(50)), 1225)
        self.assertEqual(watcher.server_status()['loads'], before)

    def test_large_objects_are_stored_and_loaded(self):
        s = self.serve()
        one = connect(self.database(s))
        data = os.urandom(1 << 20) * 20
        one.root()['large'] = PersistentMapping(data=data)
        commit(one)
        two = connect(self.database(s))
        self.assertEqual(two.root()['large']['data'], data)

    def test_a_transaction_of_many_objects_is_one_transaction(self):
        s = self.serve()
        one, two = connect(self.database(s)), connect(self.database(s))
        one.root()['all'] = PersistentMapping()
        for i in range(2000):
            one.root()['all'][i] = PersistentMapping(n=i)
        commit(one)
        eventually(sees(two, lambda: 'all' in two.root(), True))
        self.assertEqual(sum(two.root()['all'][i]['n'] for i in range(2000)), 1999000)
        self.assertEqual(len({two.root()['all'][i]._p_serial for i in range(2000)}), 1)

    def test_64_threads_read_and_write(self):
        s = self.serve()
        db = self.database(s, wait_timeout=60)
        db.setPoolSize(64)
        setup = connect(db)
        for i in range(64):
            setup.root()[i] = PersistentMapping(n=0)
        setup.root()['total'] = Length(0)
        commit(setup)
        errors = []

        def work(i):
            try:
                connection = connect(db)
                for _ in range(5):
                    for attempt in connection.transaction_manager.attempts(50):
                        with attempt:
                            connection.root()[i]['n'] += 1
                            connection.root()['total'].change(1)
                            connection.root()[(i + 1) % 64]['n']
                connection.close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        self.assertEqual(errors, [])
        check = connect(self.database(s))
        self.assertEqual([check.root()[i]['n'] for i in range(64)], [5] * 64)
        self.assertEqual(check.root()['total'](), 320)

    def test_a_client_that_dies_between_vote_and_finish_frees_the_lock(self):
        s = self.serve()
        one = connect(self.database(s))
        one.root()['x'] = 1
        commit(one)
        script = (
            'import sys, time, transaction, ZEO\n'
            'storage = ZEO.client(("127.0.0.1", %d))\n'
            't = transaction.Transaction()\n'
            'storage.tpc_begin(t)\n'
            'storage.store(storage.new_oid(), None, b"lost", "", t)\n'
            'storage.tpc_vote(t)\n'
            'print("voted", flush=True)\n'
            'time.sleep(600)\n' % s.address[1])
        with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE) as child:
            self.assertEqual(child.stdout.readline(), b'voted\n')
            child.kill()
        one.root()['x'] = 2
        commit(one)

    def test_zeo_nagios_is_answered(self):
        s = self.serve()
        one = connect(self.database(s))
        one.root()['x'] = 1
        commit(one)
        status = one.db().storage.server_status()
        self.assertEqual((status['connections'], status['commits']), (1, 2))
        done = subprocess.run(
            [sys.executable, '-c', 'import ZEO.nagios; ZEO.nagios.main()',
             '%s:%d' % s.address, '--output-metrics', '--status-path', self.path('status')],
            stdout=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('connections', done.stdout)

    def test_ZODB_reads_the_same_from_the_file(self):
        s = self.serve()
        one = connect(self.database(s))
        for i in range(20):
            one.root()[i] = OOBTree({j: 'x' * j for j in range(i * 10)})
            one.transaction_manager.get().note('note %d' % i)
            commit(one)
        served = contents(self.client(s))
        last = one.db().storage.lastTransaction()
        s.stop()
        fs = ZODB.FileStorage.FileStorage(self.path('Data.fs'), read_only=True)
        self.addCleanup(fs.close)
        self.assertEqual(contents(fs), served)
        self.assertEqual(fs.lastTransaction(), last)
        self.assertEqual(len(fs), len(served))
        notes = [t.description for t in fs.iterator()][1:]
        self.assertEqual(notes, [b'note %d' % i for i in range(20)])

    def test_the_file_goes_to_runzeo_and_comes_back(self):
        s = self.serve()
        db = self.database(s)
        one = connect(db)
        history = [server.REFERENCE, None, server.REFERENCE, None]
        for i, command in enumerate(history):
            eventually(lambda: can_commit(one, i, PersistentMapping(n=i)))
            before = contents(self.client(s))
            s.restart(command)
            self.assertEqual(contents(self.client(s)), before)
        eventually(lambda: reads(one, 0, one.root()[0]))
        self.assertEqual([one.root()[i]['n'] for i in range(4)], [0, 1, 2, 3])
        # Without its index, too.
        s.stop()
        os.remove(self.path('Data.fs.index'))
        s.start()
        self.assertEqual(contents(self.client(s)), before)

    def test_a_second_server_on_the_same_file_is_refused(self):
        s = self.serve()
        second = server.Server(self.directory)
        second.log = self.path('second.log')
        self.assertRaisesRegex(AssertionError, 'ended with status', second.start)
        one = connect(self.database(s))
        one.root()['x'] = 1
        commit(one)

    def test_clients_that_write_when_the_server_stops_lose_nothing_acknowledged(self):
        s = self.serve()
        db = self.database(s)
        acknowledged = []
        stopped = threading.Event()

        def work():
            connection = connect(db)
            n = 0
            while not stopped.is_set():
                try:
                    connection.root()['n'] = n
                    commit(connection)
                    acknowledged.append(n)
                except (ZODB.POSException.POSError, ClientDisconnected):
                    abort(connection)
                n += 1

        thread = threading.Thread(target=work)
        thread.start()
        eventually(lambda: len(acknowledged) > 20)
        s.stop()
        stopped.set()
        s.start()
        thread.join(60)
        last = acknowledged[-1]
        check = connect(self.database(s))
        self.assertGreaterEqual(check.root()['n'], last)


    def test_a_stop_sends_what_was_answered(self):
        s = self.serve()
        data = os.urandom(16 << 20)
        raw = Raw(s.address)
        (oid,), tid = raw.new(data)
        msgid = raw.start('loadBefore', oid, maxtid)
        # The answer is larger than what the kernel takes at once, and nobody reads yet.
        ready, _, _ = select.select([raw.socket], [], [], 10)
        self.assertTrue(ready)
        s.process.send_signal(signal.SIGTERM)
        # The server waits 3 s for that: read first, decode then.
        raw.buffer += b''.join(iter(lambda: raw.socket.recv(1 << 20), b''))
        self.assertEqual(tuple(raw.result(msgid)), (data, tid, None))
        self.assertEqual(s.process.wait(15), 0)
        raw.close()


class MsgpackTests(PickleTests):

    msgpack = True


def can_commit(connection, key, value):
    """Commit a change; False while there is no connection."""
    try:
        connection.transaction_manager.begin()
        connection.root()[key] = value
        commit(connection)
        return True
    except (ZODB.POSException.POSError, ClientDisconnected):
        abort(connection)
        return False


def reads(connection, key, value):
    """Does a new transaction read this? False while there is no connection."""
    try:
        connection.transaction_manager.begin()
        return connection.root().get(key) == value
    except (ZODB.POSException.POSError, ClientDisconnected):
        return False


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    server.main()
