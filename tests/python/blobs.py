"""Blobs, with stock clients and over the wire; and what a long one costs the others.

    blobs.py                            # the tests
    BLOB_MB=2048 blobs.py LongBlobTests # figures; with REFERENCE=1 of runzeo, too

A test of this file says in its output how long commits of others took while a long blob came in
and went out. Nothing depends on these times.
"""
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unittest

import server
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

import transaction  # noqa: E402
import ZEO  # noqa: E402
import ZODB  # noqa: E402
import ZODB.blob  # noqa: E402
import ZODB.FileStorage  # noqa: E402
from harness.rawclient import Hangup  # noqa: E402 (of the conformance tests)
from harness.rawclient import Raw
from harness.rawclient import ServerError
from harness.rawclient import filler
from harness.rawclient import record
from ZODB.utils import z64

STORAGE = '<filestorage 1>\n  path Data.fs\n  blob-dir blobs\n%s</filestorage>\n'
BLOB = record('ZODB.blob.Blob')
BLOB_MB = int(os.environ.get('BLOB_MB', 64))
COMMITTERS = 20
CHUNK = 59000
MEMORY_MAX = 64 << 20       # bytes that blobs may make the server grow


class Case(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def serve(self, more='', **options):
        s = server.Server(self.directory, storages=STORAGE % more, **options)
        self.addCleanup(s.stop)
        return s.start()

    def raw(self, server_, **options):
        client = Raw(server_.address, **options)
        self.addCleanup(client.close)
        return client

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def files(self):
        return sorted(
            os.path.relpath(os.path.join(path, name), self.path('blobs'))
            for path, _, names in os.walk(self.path('blobs')) for name in names)


def put(client, content, oid=None, serial=z64):
    oid = oid or client.call('new_oids')[0]
    client.begin()
    client.store(oid, serial, BLOB)
    client.store_blob(oid, serial, BLOB, content)
    assert list(client.vote()) == []
    return oid, client.finish()


def get(client, oid, tid):
    del client.pushed[:]
    assert client.call('sendBlob', oid, tid) is None
    return b''.join(a[2] for n, a in client.pushed if n == 'receiveBlobChunk')


def bushy(oid, tid):
    return os.path.join('blobs', ZODB.blob.BushyLayout().getBlobFilePath(oid, tid))


class StockTests(Case):

    msgpack = False

    def database(self, server_, shared):
        name = 'blobs' if shared else tempfile.mkdtemp(dir=self.directory)
        db = ZEO.DB(server_.address, blob_dir=self.path(name), shared_blob_dir=shared,
                    wait_timeout=20)
        # The second time does nothing, as the database's own would not.
        self.addCleanup(db.storage.close)
        return db

    def write(self, db, key, content):
        with db.transaction() as connection:
            connection.root()[key] = ZODB.blob.Blob(content)

    def read(self, db, key):
        with db.transaction() as connection:
            with connection.root()[key].open() as f:
                return f.read()

    def test_streamed_and_shared_clients_read_each_others_blobs(self):
        s = self.serve(msgpack=self.msgpack)
        clients = [self.database(s, shared) for shared in (False, True)]
        for n, writer in enumerate(clients):
            # It conflicts with what it does not see.
            eventually(lambda: not n or self.reads(writer, n - 1))
            self.write(writer, n, b'%d' % n * 200000)
        for reader in clients:
            for n in range(len(clients)):
                eventually(lambda: self.reads(reader, n))
                self.assertEqual(self.read(reader, n), b'%d' % n * 200000)
        self.assertEqual(os.listdir(self.path('blobs', 'tmp')), [])
        modes = {os.stat(self.path('blobs', name)).st_mode & 0o222 for name in self.files()
                 if name.endswith('.blob')}
        self.assertEqual(modes, {0})

    def reads(self, db, key):
        with db.transaction() as connection:
            return key in connection.root()

    def test_files_go_to_ZODB_and_to_runzeo_and_come_back(self):
        s = self.serve(msgpack=self.msgpack)
        for turn, command in enumerate((None, server.REFERENCE, None)):
            if turn:
                s.restart(command)
            db = self.database(s, shared=False)
            self.write(db, 'key', b'first %d' % turn)
            self.write(db, 'key', b'second %d' % turn)
            db.close()
        s.stop()
        storage = ZODB.FileStorage.FileStorage(
            self.path('Data.fs'), blob_dir=self.path('blobs'), read_only=True)
        blobs = []
        for txn in storage.iterator():
            for r in txn:
                if storage.is_blob_record(r.data):
                    with open(storage.loadBlob(r.oid, r.tid), 'rb') as f:
                        blobs.append(f.read())
        storage.close()
        # runzeo writes the record of a blob twice.
        self.assertEqual(list(dict.fromkeys(blobs)), [
            b'%s %d' % (name, turn) for turn in range(3) for name in (b'first', b'second')])


class MsgpackStockTests(StockTests):

    msgpack = True


class WireTests(Case):

    def test_read_only_blobs_are_served_and_nothing_is_written(self):
        s = self.serve()
        oid, tid = put(self.raw(s), b'content')
        s.stop()
        os.rmdir(self.path('blobs', 'tmp'))
        before = self.files()
        s.storages = STORAGE % '  read-only true\n'
        s.start()
        self.assertEqual(get(self.raw(s, read_only=True), oid, tid), b'content')
        self.assertEqual(self.files(), before)
        self.assertFalse(os.path.exists(self.path('blobs', 'tmp')))

    def test_a_client_that_reads_nothing_costs_no_memory(self):
        s = self.serve()
        oid, tid = put(self.raw(s), b'x' * (32 << 20))
        before = s.resident()
        deaf = [self.raw(s) for _ in range(8)]
        for client in deaf:
            for _ in range(8):
                client.start('sendBlob', oid, tid)
        # Its other calls are answered, though behind what was sent before.
        reader = self.raw(s)
        self.assertEqual(len(get(reader, oid, tid)), 32 << 20)
        self.assertLess(s.resident() - before, MEMORY_MAX)
        for client in deaf[1:]:
            client.close()
        done = [deaf[0].start('ping')] + list(range(2, deaf[0].last_id))
        for msgid in done:
            deaf[0].result(msgid, 60)
        chunks = [a for n, a in deaf[0].pushed if n == 'receiveBlobChunk']
        self.assertEqual(sum(len(a[2]) for a in chunks), 8 * (32 << 20))

    def test_blobs_of_one_client_come_at_the_same_time(self):
        s = self.serve()
        c = self.raw(s)
        long = put(c, os.urandom(4 << 20))
        short = put(c, b'short')
        del c.pushed[:], c.order[:]
        # In one piece: a pause between them would let all of the first go into the kernel's buffers.
        first, second, ping = 101, 102, 103
        c.socket.sendall(b''.join(c.message(n, False, name, args) for n, name, args in (
            (first, 'sendBlob', long), (second, 'sendBlob', short), (ping, 'ping', ()))))
        for msgid in (first, second, ping):
            c.result(msgid)
        replies = [message[0] for message in c.order if message[2] == '.reply']
        self.assertEqual(replies[-1], first)
        stops = [tuple(a) for n, a in c.pushed if n == 'receiveBlobStop']
        self.assertEqual(stops, [short, long])

    def test_a_few_blobs_of_one_client_come_at_the_same_time(self):
        s = self.serve()
        c = self.raw(s)
        blobs = [put(c, os.urandom(1 << 20)) for _ in range(9)]
        del c.pushed[:]
        c.socket.sendall(b''.join(
            c.message(100 + n, False, 'sendBlob', blob) for n, blob in enumerate(blobs)))
        for n in range(len(blobs)):
            c.result(100 + n)
        open_now, most = set(), 0
        for name, arguments in c.pushed:
            if name == 'receiveBlobStart':
                open_now.add(arguments[0])
            elif name == 'receiveBlobStop':
                open_now.remove(arguments[0])
            most = max(most, len(open_now))
        self.assertEqual((most, open_now), (4, set()))

    def test_wrong_calls_cost_the_connection_and_leave_nothing(self):
        s = self.serve()
        wrong = [
            lambda c: c.tell('storeBlobChunk', b'without a start'),
            lambda c: (c.tell('storeBlobStart'), c.tell('storeBlobStart')),
            lambda c: c.tell('storeBlobEnd', z64, z64, BLOB, c.transaction),
            lambda c: (c.tell('storeBlobStart'), c.tell('storeBlobEnd', z64, z64, b'', c.transaction)),
            lambda c: (c.tell('storeBlobStart'), c.tell('storeBlobEnd', z64, z64, BLOB, 'another')),
        ] + [
            lambda c, name=name: c.tell('storeBlobShared', z64, z64, BLOB, name, c.transaction)
            for name in ('../x.tmp', '/etc/passwd.tmp', 'a/b.tmp', '..', '', 'x', 'x\0.tmp', 'x.tmp\0')
        ]
        for call in wrong:
            c = self.raw(s)
            c.begin()
            call(c)
            self.assertTrue(c.hangs_up())
        c = self.raw(s)
        c.tell('storeBlobStart')
        self.assertTrue(c.hangs_up())
        self.assertEqual(get(self.raw(s), *put(self.raw(s), b'fine')), b'fine')
        eventually(lambda: not os.listdir(self.path('blobs', 'tmp')))

    def test_what_is_no_file_of_the_client_is_refused(self):
        s = self.serve()
        c = self.raw(s)
        oid = c.call('new_oids')[0]
        directory = self.path(os.path.dirname(bushy(oid, z64)))
        os.makedirs(os.path.join(directory, 'directory.tmp'))
        with open(self.path('secret'), 'w') as f:
            f.write('secret')
        os.symlink(self.path('secret'), os.path.join(directory, 'link.tmp'))
        os.mkfifo(os.path.join(directory, 'fifo.tmp'))
        for name in ('directory.tmp', 'link.tmp', 'fifo.tmp', 'missing.tmp'):
            c.begin()
            c.store(oid, z64, BLOB)
            c.tell('storeBlobShared', oid, z64, BLOB, name, c.transaction)
            with self.assertRaises(ServerError, msg=name):
                c.vote()
            c.abort()
        self.assertEqual(os.listdir(self.path('blobs', 'tmp')), [])

    def test_a_full_disk_costs_one_transaction(self):
        os.mkdir(self.path('blobs'))
        mounted = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', self.path('blobs')],
            stderr=subprocess.DEVNULL)
        if mounted.returncode:
            self.skipTest('no small file system can be mounted (that needs root)')
        self.addCleanup(subprocess.run, ['umount', self.path('blobs')], check=True)
        s = self.serve()
        c, other = self.raw(s), self.raw(s)
        for _ in range(3):
            c.begin()
            oid = c.call('new_oids')[0]
            c.store(oid, z64, BLOB)
            c.store_blob(oid, z64, BLOB, b'x' * (20 << 20))
            with self.assertRaises(ServerError) as caught:
                c.vote()
            self.assertIn('No space left', str(caught.exception))
            c.abort()
            other.new(record())
            eventually(lambda: not os.listdir(self.path('blobs', 'tmp')))
            self.assertEqual(get(other, *put(c, b'y' * (1 << 20))), b'y' * (1 << 20))

    def test_a_transaction_of_many_blobs_is_one_transaction(self):
        s = self.serve()
        c = self.raw(s)
        oids = [oid for _ in range(5) for oid in c.call('new_oids')]
        c.begin()
        for oid in oids:
            c.store_blob(oid, z64, BLOB, oid)
        self.assertEqual(list(c.vote()), [])
        tid = c.finish()
        reader = self.raw(s)
        for oid in oids:
            self.assertEqual(get(reader, oid, tid), oid)

    def test_killed_at_any_time_no_acknowledged_blob_is_missing(self):
        s = self.serve()
        acknowledged = []
        for n in range(5):
            client = self.raw(s)
            for _ in range(3):      # however slow the disk is
                content = os.urandom(70000)
                acknowledged.append(put(client, content) + (content,))
            process = multiprocessing.Process(target=kill_after, args=(s.process.pid, .3 + .1 * n))
            process.start()
            try:
                while True:
                    content = os.urandom(1000 + 70000 * (len(acknowledged) % 7))
                    acknowledged.append(put(client, content) + (content,))
            except (Hangup, OSError):
                pass
            process.join()
            s.kill()
            s.start()
            self.assertEqual(os.listdir(self.path('blobs', 'tmp')), [])
        self.assertGreater(len(acknowledged), 10)
        reader = self.raw(s)
        for oid, tid, content in acknowledged:
            self.assertEqual(get(reader, oid, tid), content)


class LongBlobTests(Case):

    def test_others_commit_while_a_long_blob_comes_and_goes(self):
        self.figures('standbyd', None)

    if os.environ.get('REFERENCE'):
        def test_the_same_with_runzeo(self):
            self.figures('runzeo', server.REFERENCE)

    def figures(self, name, command):
        s = self.serve(command=command)
        stop = multiprocessing.Event()
        times = multiprocessing.Queue()
        committers = [
            multiprocessing.Process(target=commit, args=(s.address, stop, times), daemon=True)
            for _ in range(COMMITTERS)]
        for process in committers:
            process.start()
        for _ in committers:
            self.assertIsNone(times.get(timeout=60))
        phases = []

        def phase(title, function):
            start = time.time()
            result = function()
            phases.append((title, start, time.time()))
            return result

        before = s.resident()
        peak = [before]
        client = self.raw(s)
        client.timeout = 600
        phase('alone', lambda: time.sleep(5))
        oid, tid = phase('upload', lambda: self.upload(client, s, peak))
        phase('download', lambda: self.download(client, oid, tid, s, peak))
        phase('alone again', lambda: time.sleep(5))
        stop.set()
        samples = []
        for _ in committers:
            samples.extend(times.get(timeout=60))
        for process in committers:
            process.join(60)
        print('\n%s: commits of %d clients beside a blob of %d MB (server grew by %.0f MB)' % (
            name, COMMITTERS, BLOB_MB, (max(peak) - before) / 1e6))
        for title, start, end in phases:
            # Whatever was under way in this phase.
            within = sorted(b - a for a, b in samples if a < end and b > start)
            self.assertGreater(len(within), COMMITTERS, title)
            print('%-12s %6.1f s %6d commits: p50 %6.1f ms, p99 %6.1f ms, max %6.1f ms' % (
                title, end - start, len(within), statistics.median(within) * 1e3,
                within[len(within) * 99 // 100] * 1e3, within[-1] * 1e3))
        sys.stdout.flush()
        if command is None:
            self.assertLess(max(peak) - before, MEMORY_MAX)

    def upload(self, client, server_, peak):
        oid = client.call('new_oids')[0]
        chunk = os.urandom(CHUNK)
        client.begin()
        client.store(oid, z64, BLOB)
        client.tell('storeBlobStart')
        message = client.message(0, True, 'storeBlobChunk', (chunk,))
        for n in range(BLOB_MB * 1000000 // CHUNK):
            client.socket.sendall(message)
            if n % 500 == 0:
                peak.append(server_.resident())
        client.tell('storeBlobEnd', oid, z64, BLOB, client.transaction)
        self.assertEqual(list(client.vote()), [])
        peak.append(server_.resident())
        return oid, client.finish()

    def download(self, client, oid, tid, server_, peak):
        msgid = client.start('sendBlob', oid, tid)
        received = 0
        while msgid not in client.replies:
            del client.pushed[:], client.order[:]
            client.receive()
            received += sum(len(a[2]) for n, a in client.pushed if n == 'receiveBlobChunk')
            if received % 500 == 0:
                peak.append(server_.resident())
        self.assertEqual(received, BLOB_MB * 1000000 // CHUNK * CHUNK)
        peak.append(server_.resident())


def kill_after(pid, seconds):
    time.sleep(seconds)
    os.kill(pid, 9)


def commit(address, stop, times):
    """Commit until told to stop; then say when each commit began and ended."""
    client = Raw(address)
    client.timeout = 600
    (oid,), serial = client.new(record())
    times.put(None)
    samples = []
    while not stop.is_set():
        start = time.time()
        serial = client.commit((oid, serial, filler(200)))
        samples.append((start, time.time()))
        del client.pushed[:], client.order[:]
        time.sleep(.01)
    client.close()
    times.put(samples)


if __name__ == '__main__':
    multiprocessing.set_start_method('fork')
    server.main()
