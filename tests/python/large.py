"""Objects and transactions that are longer than the memory that the server takes for them.

What is asserted is the most memory that the server ever had (VmHWM), and that all that comes back
is what was sent; no times.
"""
import logging
import os
import shutil
import struct
import sys
import tempfile
import unittest

import transaction
import ZEO
import ZODB
from persistent import Persistent
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import z64

import server
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

from harness.rawclient import Raw  # noqa: E402 (of the conformance tests)

MB = 1 << 20
LONG = 64 * MB
# The server has 4 MB to begin with. A client takes two pieces of 1 MB and what was read last, a
# transaction 8 MB, and the worker that writes 1 MB.
MEMORY_MAX = 24 * MB


class Text(Persistent):

    def __init__(self, text):
        self.text = text


class Client(Raw):
    """Takes long frames without copying what it has got again and again."""

    timeout = 120

    def frame(self, timeout=None):
        self.socket.settimeout(timeout or self.timeout)
        size, = struct.unpack('>I', self.take(4))
        return self.take(size)

    def take(self, size):
        pieces = [self.buffer[:size]]
        self.buffer = self.buffer[size:]
        left = size - len(pieces[0])
        while left:
            pieces.append(self.socket.recv(min(left, MB)))
            if not pieces[-1]:
                raise ConnectionError('the server hung up')
            left -= len(pieces[-1])
        return b''.join(pieces)

    def loaded(self, oid):
        return self.call('loadBefore', oid, maxtid)[0]


class Case(unittest.TestCase):

    msgpack = False

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.server = server.Server(self.directory, msgpack=self.msgpack).start()
        self.addCleanup(self.server.stop)
        self.data = os.urandom(LONG)

    def connect(self):
        client = Client(self.server.address)
        self.addCleanup(client.close)
        return client

    def open(self):
        db = ZODB.DB(ZEO.client(self.server.address, cache_size=MB), large_record_size=2 * LONG)
        self.addCleanup(db.close)
        return db

    def peak(self):
        with open('/proc/%d/status' % self.server.process.pid) as f:
            for line in f:
                if line.startswith('VmHWM:'):
                    return int(line.split()[1]) * 1024

    def check_memory(self, most=MEMORY_MAX):
        self.assertLess(self.peak(), most)

    def test_a_long_object_comes_back_as_it_was(self):
        client, reader = self.connect(), self.connect()
        tid = client.commit((p64(1), z64, self.data))
        self.assertTrue(reader.loaded(p64(1)) == self.data)
        self.assertTrue(reader.call('loadSerial', p64(1), tid) == self.data)
        self.assertEqual(reader.pushed[0][0], 'invalidateTransaction')
        # It conflicts: whoever resolves that gets it back.
        client.begin()
        client.store(p64(1), z64, self.data[:MB + 5])
        (conflict,) = client.vote()
        self.assertTrue(conflict['data'] == self.data[:MB + 5])
        client.store(p64(1), tid, self.data[MB:])
        self.assertEqual(list(client.vote()), [])
        client.finish()
        self.assertTrue(reader.loaded(p64(1)) == self.data[MB:])
        self.check_memory()
        self.server.restart()
        self.assertTrue(self.connect().loaded(p64(1)) == self.data[MB:])

    def test_what_stock_zeo_stores_it_loads(self):
        db = self.open()
        with db.transaction() as connection:
            connection.root()['long'] = Text(self.data)
        other = self.open()
        connection = other.open()
        self.assertTrue(connection.root()['long'].text == self.data)
        connection.root()['long'].text = 'short'
        transaction.commit()
        connection.close()
        self.check_memory()

    def deleted_files(self):
        directory = '/proc/%d/fd' % self.server.process.pid
        links = []
        for fd in os.listdir(directory):
            try:
                links.append(os.readlink(os.path.join(directory, fd)))
            except FileNotFoundError:
                pass
        return [link for link in links if link.endswith(' (deleted)')]


class PickleTests(Case):
    pass


class MsgpackTests(Case):
    """The same, and what does not depend on how it is encoded."""

    msgpack = True

    def test_long_objects_of_many_clients_at_once(self):
        clients = [self.connect() for _ in range(6)]
        for client in clients:
            client.begin()
        calls = [client.message(0, True, 'storea', (p64(n), z64, self.data, client.transaction))
                 for n, client in enumerate(clients)]
        step = 5 * MB
        for start in range(0, len(calls[0]), step):
            for client, call in zip(clients, calls):
                client.socket.sendall(call[start:start + step])
        # Two of them vanish, one of these in the middle of one more.
        clients[5].socket.sendall(calls[5][:40 * MB])
        for client in clients[4:]:
            client.close()
        for client in clients[:4]:
            self.assertEqual(list(client.vote()), [])
            client.finish()
        self.assertTrue(clients[0].loaded(p64(3)) == self.data)
        eventually(lambda: self.connect().call('server_status')['active_txns'] == 0)
        self.check_memory(MEMORY_MAX + 6 * 3 * MB)

    def test_who_asks_for_much_and_reads_nothing_takes_no_memory(self):
        client, greedy = self.connect(), self.connect()
        client.commit((p64(1), z64, self.data))
        calls = [greedy.start('loadBefore', p64(1), maxtid) for _ in range(100)]
        # It hears of these, too, in its turn.
        for n in range(20):
            client.commit((p64(2 + n), z64, b'short'))
        self.check_memory()
        for call in calls[:3]:
            self.assertTrue(greedy.result(call)[0] == self.data)
        self.check_memory()
        eventually(lambda: greedy.receive() or len(greedy.pushed) == 21)

    def test_what_waits_behind_a_long_reply_comes_behind_it(self):
        client, reader = self.connect(), self.connect()
        lengths = [LONG, 900000, 100, 900000, 900000, 50, 900000, 900000, 900000]
        client.commit(*[(p64(n), z64, self.data[:length]) for n, length in enumerate(lengths)])
        # More of them than may wait for a client: it is paused, and goes on all the same. The
        # short ones, which are answered on the spot, must not come in the middle of a long one.
        for length in 100, 50:
            reader.call('loadBefore', p64(lengths.index(length)), maxtid)
        calls = [reader.start('loadBefore', p64(n % 9), maxtid) for n in range(27)]
        calls.append(reader.start('ping'))
        client.commit((p64(99), z64, b'short'))
        for n, call in enumerate(calls[:-1]):
            self.assertTrue(reader.result(call)[0] == self.data[:lengths[n % 9]])
        reader.result(calls[-1])
        eventually(lambda: len(reader.pushed) == 2 or reader.receive())
        self.check_memory()

    def test_a_long_transaction(self):
        client, other = self.connect(), self.connect()
        client.begin()
        for n in range(4):
            client.store(p64(n), z64, self.data)
        for n in range(4, 100):
            client.store(p64(n), z64, self.data[n:n + MB // 2])
        for n in range(100, 1000):
            client.store(p64(n), z64, self.data[n:n + 300])
        for start in range(1000, 100000, 1000):
            client.socket.sendall(b''.join(
                client.message(0, True, 'storea',
                               (p64(n), z64, self.data[n:n + 300], client.transaction))
                for n in range(start, start + 1000)))
        self.assertEqual(list(client.vote()), [])
        tid = client.finish()
        for n in 0, 3, 4, 99, 100, 101, 99999:
            data = self.data if n < 4 else self.data[n:n + (MB // 2 if n < 100 else 300)]
            self.assertTrue(tuple(other.call('loadBefore', p64(n), maxtid)) == (data, tid, None))
        (name, (changed, oids)), = other.pushed
        self.assertEqual((name, changed), ('invalidateTransaction', tid))
        self.assertEqual(list(oids), [p64(n) for n in range(100000)])
        # 200 bytes for each object, in the transaction and in what others hear of it.
        self.check_memory(MEMORY_MAX + 100000 * 200)

    def test_a_long_transaction_that_is_given_up_leaves_nothing(self):
        client = self.connect()
        client.begin()
        for n in range(4):
            client.store(p64(n), z64, self.data)
        client.abort()
        client.commit((p64(1), z64, b'short'))
        self.assertLess(os.path.getsize(os.path.join(self.directory, 'Data.fs')), 1000)
        eventually(lambda: not self.deleted_files())
        self.check_memory()


del Case    # not a test by itself


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    server.main()
