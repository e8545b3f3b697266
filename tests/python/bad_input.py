"""Clients that do wrong, by malice or by accident, each at its own cost only.

Beside every test a well-behaved client commits and loads; it must not notice anything. Memory and
descriptors of the server are back to normal afterwards.
"""
import os
import random
import resource
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import unittest

import server
from server import dial
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))

from harness.rawclient import Hangup  # noqa: E402 (of the conformance tests)
from harness.rawclient import Raw
from harness.rawclient import ServerError
from harness.rawclient import filler
from harness.rawclient import record
from ZODB.utils import maxtid
from ZODB.utils import z64

MEMORY_MAX = 150 << 20      # bytes that a test may make the server grow
PATIENCE = 10               # seconds until the neighbour has noticed

METHODS = (
    'register', 'get_info', 'lastTransaction', 'getInvalidations', 'loadBefore', 'loadSerial',
    'getTid', 'history', 'new_oids', 'vote', 'tpc_finish', 'tpc_abort', 'undoLog', 'undoInfo',
    'pack', 'sendBlob', 'iterator_start', 'iterator_next', 'iterator_record_start',
    'iterator_record_next', 'record_iternext', 'server_status', 'ping', 'tpc_begin', 'storea',
    'restorea', 'deleteObject', 'checkCurrentSerialInTransaction', 'undoa', 'storeBlobStart',
    'storeBlobChunk', 'storeBlobEnd', 'storeBlobShared', 'iterator_gc', 'set_client_label')


class Neighbour(threading.Thread):
    """A client that commits and loads all the time, and measures how long that takes."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.client = Raw(address)
        self.client.timeout = 60
        self.stopping = threading.Event()
        self.error = None
        self.rounds = 0
        self.slowest = 0

    def run(self):
        try:
            (oid,), serial = self.client.new(record())
            while not self.stopping.is_set():
                start = time.monotonic()
                data = filler(100)
                serial = self.client.commit((oid, serial, data))
                loaded = self.client.call('loadBefore', oid, maxtid)
                assert tuple(loaded) == (data, serial, None), loaded
                self.slowest = max(self.slowest, time.monotonic() - start)
                self.rounds += 1
                self.stopping.wait(.005)
        except BaseException as error:
            self.error = error
        finally:
            self.client.close()


class Case(unittest.TestCase):

    msgpack = False
    wrapper = ()

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.server = server.Server(self.directory, msgpack=self.msgpack, wrapper=self.wrapper)
        self.server.start()
        self.addCleanup(self.server.stop)
        self.address = self.server.address
        self.encoding = b'M' if self.msgpack else b'Z'
        self.neighbour = Neighbour(self.address)
        self.neighbour.start()
        eventually(lambda: self.neighbour.rounds > 3 or self.neighbour.error)
        self.memory = self.server.resident()
        self.descriptors = self.open_descriptors()
        self.addCleanup(self.nothing_happened)

    def nothing_happened(self):
        rounds = self.neighbour.rounds
        eventually(lambda: self.neighbour.rounds > rounds + 3 or self.neighbour.error, PATIENCE)
        self.neighbour.stopping.set()
        self.neighbour.join(60)
        self.assertIsNone(self.neighbour.error)
        self.assertLess(self.neighbour.slowest, PATIENCE)
        self.assertLess(self.server.resident() - self.memory, MEMORY_MAX)
        eventually(lambda: self.open_descriptors() <= self.descriptors, 20)

    def open_descriptors(self):
        return len(os.listdir('/proc/%d/fd' % self.server.process.pid))

    def connect(self, **options):
        client = Raw(self.address, **options)
        self.addCleanup(client.close)
        return client

    def send(self, *pieces, register=True):
        """Send bytes on a connection of its own; does the server hang up?"""
        client = self.connect() if register else self.connect(handshake=False)
        try:
            for piece in pieces:
                client.socket.sendall(piece)
        except ConnectionError:
            return True
        return ends(client.socket)

    def refused(self, *pieces, **options):
        self.assertTrue(self.send(*pieces, **options), [piece[:40] for piece in pieces])


def frame(data):
    return struct.pack('>I', len(data)) + data


class GreetingTests(Case):

    def test_garbage_instead_of_a_greeting_is_refused(self):
        rng = random.Random(1)
        for garbage in (
                b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n',
                bytes.fromhex('16030100c8010000c40303') + rng.randbytes(200),   # TLS
                b'SSH-2.0-OpenSSH_9.2p1\r\n',
                b'\xff' * 100,
                frame(b'Z'), frame(b'Z4'), frame(b'Z6'), frame(b'Z5' * 100),
                frame(b'ruokay'), frame(rng.randbytes(2)), frame(rng.randbytes(1000)),
                frame(b'\x00' * 5000)):
            self.refused(garbage, register=False)

    def test_noise_is_refused_or_waited_for(self):
        rng = random.Random(2)
        for _ in range(200):
            client = self.connect(handshake=False)
            try:
                client.socket.sendall(rng.randbytes(rng.randrange(1, 3000)))
            except ConnectionError:
                pass
            client.close()

    def test_a_frame_that_is_too_long_is_refused_before_it_comes(self):
        greeting = frame(self.encoding + b'5')
        self.refused(b'\xff\xff\xff\xff', register=False)
        self.refused(struct.pack('>I', 100000), register=False)
        self.refused(greeting, struct.pack('>I', 1 << 24), register=False)
        self.refused(b'\xff\xff\xff\xff')
        self.refused(struct.pack('>I', (1 << 32) - 16), b'x' * 1000)

    def test_announced_frames_take_no_memory_until_they_come(self):
        clients = [self.connect() for _ in range(50)]
        for client in clients:
            client.socket.sendall(struct.pack('>I', 900 << 20) + b'x' * 100000)
        time.sleep(.5)
        self.assertLess(self.server.resident() - self.memory, MEMORY_MAX)

    def test_truncated_frames_end_with_their_connection(self):
        whole = frame(self.encoding + b'5') + frame(b'x' * 50)
        for length in range(1, len(whole)):
            with dial(self.address) as s:
                s.sendall(whole[:length])
                s.shutdown(socket.SHUT_WR)

    def test_a_client_may_be_slow(self):
        client = self.connect(register=None)
        message = client.message(1, False, 'register', ('1', False))
        for i in range(len(message)):
            client.socket.sendall(message[i:i + 1])
            time.sleep(.005)
        self.assertEqual(len(client.result(1)), 8)
        slow = [self.connect() for _ in range(50)]
        for byte in struct.pack('>I', 1 << 20) + b'x' * 16:
            for client in slow:
                client.socket.sendall(bytes([byte]))
        for client in slow:
            client.close()

    def test_connections_reset_in_the_middle_of_a_frame(self):
        for _ in range(50):
            client = self.connect()
            client.begin()
            message = client.message(
                0, True, 'storea', (z64, z64, filler(100000), client.transaction))
            client.socket.sendall(message[:random.randrange(1, len(message))])
            reset(client)

    def test_connections_reset_with_the_commit_lock_taken(self):
        for _ in range(20):
            client = self.connect()
            oids = client.call('new_oids')
            client.begin()
            client.store(oids[0], z64, record())
            client.start('vote', client.transaction)
            reset(client)

    def test_thousands_of_half_open_connections(self):
        wanted = 2000
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < wanted + 200:
            self.skipTest('the hard limit of descriptors is %d' % hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + 200, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        pid = self.server.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted + 200, hard))
        idle = [dial(self.address) for _ in range(wanted)]
        self.connect().new(record())
        self.assertLess(self.server.resident() - self.memory, MEMORY_MAX)
        self.assertLess(busy(pid, 1), .5)
        for s in idle:
            s.close()


class MessageTests:
    """What a registered client may send; once for each encoding."""

    def test_undecodable_messages_are_refused(self):
        for data in self.undecodable():
            self.refused(frame(data))
            self.refused(frame(self.encoding + b'5'), frame(data), register=False)

    def test_messages_that_are_no_calls_are_refused(self):
        client = self.connect()
        for message in (None, 1, 'x', (), (1,), (1, False, 'ping'), (1, False, 'ping', (), 1),
                        (1, False, 17, ()), (1, False, None, ()), [], {}, b'',
                        (1, False, 'no_such_method', ()), (1, False, '__class__', ()),
                        (1, False, 'x' * 100000, ())):
            self.refused(frame(self.pack(client, message)))

    def test_wrong_arguments_are_answered_or_refused(self):
        values = (None, 1, -1, 1 << 62, 1.5, True, '', 'x', '\u20ac', b'', b'x', b'x' * 8,
                  b'x' * 9, (), (1,), {}, {'a': 1}, [[[[]]]], z64, maxtid)
        rng = random.Random(3)
        for name in METHODS:
            # A new one for each method, as one that begins and votes may hold up the neighbour.
            client = self.connect()
            for length in range(8):
                arguments = tuple(rng.choice(values) for _ in range(length))
                client = self.try_call(client, name, arguments)
            client.close()

    def try_call(self, client, name, arguments):
        """Call both ways, on a new connection if the last one was closed."""
        for async_ in True, False:
            try:
                client.send(17, async_, name, arguments)
                client.call('ping')
            except (Hangup, ConnectionError):
                client.close()
                client = self.connect()
            except ServerError as error:
                self.fail(error)
            client.replies.clear()
        return client

    def test_calls_out_of_order_are_answered_or_refused(self):
        rng = random.Random(4)
        for _ in range(100):
            client = self.connect()
            try:
                oids = client.call('new_oids')
                for _ in range(10):
                    self.random_step(rng, client, oids[0])
                client.call('ping')
            except (Hangup, ConnectionError):
                pass
            client.close()

    @staticmethod
    def random_step(rng, client, oid):
        txn = rng.choice((1, 2))
        step = rng.randrange(7)
        if step == 0:
            client.tell('tpc_begin', txn, b'', b'', {}, None, ' ')
        elif step == 1:
            client.tell('storea', oid, z64, record(), txn)
        elif step == 2:
            client.tell('checkCurrentSerialInTransaction', oid, z64, txn)
        elif step == 3:
            client.start('vote', txn)
        elif step == 4:
            client.start('tpc_finish', txn)
        elif step == 5:
            client.start('tpc_abort', txn)
        else:
            client.start('register', '1', False)

    def test_a_client_that_does_not_read_is_not_answered_without_end(self):
        client = self.connect()
        (oid,), _ = client.new(filler(1 << 20))
        client.socket.setblocking(False)
        request = client.message(1, False, 'loadBefore', (oid, maxtid)) * 10
        for _ in range(200):
            try:
                client.socket.send(request)
            except BlockingIOError:
                time.sleep(.005)
        self.assertLess(self.server.resident() - self.memory, MEMORY_MAX)

    def test_a_client_may_ask_for_much_at_once(self):
        client = self.connect()
        (oid,), _ = client.new(filler(1000))
        ids = [client.start('loadBefore', oid, maxtid) for _ in range(5000)]
        for msgid in ids:
            client.result(msgid)


class PickleTests(MessageTests, Case):

    @staticmethod
    def undecodable():
        head = b'\x80\x03'
        call = b'K\x01\x89X\x04\x00\x00\x00ping'
        yield b''
        yield b'x'
        yield head
        yield head + b'('
        yield head + b'.'
        yield head + b'(' * 100000 + b'.'
        yield head + b'(' + call + b'(' * 50000 + b't' * 50000 + b't.'          # deep
        yield head + b'(' + call + b']' * 30000 + b'a' * 29999 + b't.'          # deep lists
        yield head + b'(' + call + b']q\x00h\x00at' + b'.'                      # cyclic
        yield head + b'(' + call + doubling(b']q\x00', 60) + b't.'              # 2^60 values
        yield head + b'(' + call + b'(' + b'N' * 5000000 + b'tt.'               # too many
        yield head + b'(' + call + b'B\xff\xff\xff\xfft.'                       # lengths
        yield head + b'(' + call + b'X\xff\xff\xff\x7ft.'
        yield head + b'(' + call + b'\x8b\xff\xff\xff\x7ft.'
        yield head + b'(' + call + b'\x8e' + b'\xff' * 8 + b't.'
        yield head + b'(' + call + b'I' + b'9' * 100000 + b'\nt.'
        yield head + b'(' + call + b'h\x07t.'                                   # no such memo
        yield head + b'cos\nsystem\nX\x02\x00\x00\x00id\x85R.'
        yield head + b'cbuiltins\neval\nX\x01\x00\x00\x001\x85R.'
        yield head + b'(' + call + b'cposix\nabort\n)Rt.'
        yield head + b'\x82\x01.'
        yield head + b'P1\n.'

    @staticmethod
    def pack(_client, message):
        import pickle
        return pickle.dumps(message, 3)


class MsgpackTests(MessageTests, Case):

    msgpack = True

    @staticmethod
    def undecodable():
        call = b'\x94\x01\xc2\xa4ping'
        yield b''
        yield b'\xc1'
        yield b'\x94'
        yield b'\x91' * 100000                                                  # deep
        yield call + b'\x91' * 50000 + b'\xc0'
        yield call + b'\x81\xc0' * 30000 + b'\xc0'
        yield call + b'\xdd\xff\xff\xff\xff'                                    # lengths
        yield call + b'\xdf\xff\xff\xff\xff'
        yield call + b'\xdb\xff\xff\xff\xff'
        yield call + b'\xc6\xff\xff\xff\xff'
        yield call + b'\xc9\xff\xff\xff\xff\x01'
        yield call + b'\xdd\x00\x4c\x4b\x40' + b'\xc0' * 5000000                # too many
        yield call + b'\x91\xa2\xff\xfe'                                        # not UTF-8
        yield call + b'\x90\x90'                                                # trailing

    @staticmethod
    def pack(_client, message):
        import msgpack
        return msgpack.packb(message, use_bin_type=True)


class DescriptorTests(Case):
    """A server that may open 64 files."""

    wrapper = ('sh', '-c', 'ulimit -n 64; exec "$@"', 'sh')

    def test_a_server_without_descriptors_serves_again_when_clients_leave(self):
        crowd = []
        for _ in range(200):
            s = socket.socket()
            s.settimeout(.2)
            crowd.append(s)
            try:
                s.connect(self.address)
            except OSError:
                break       # the queue of the listener is full
        # It waits for descriptors without spinning.
        self.assertLess(busy(self.server.process.pid, 2), .5)
        for s in crowd:
            s.close()
        # Connections that have waited, but have left, come first.
        eventually(self.commits, 30)

    def commits(self):
        try:
            client = Raw(self.address)
        except (Hangup, OSError):
            return False
        client.new(record())
        client.close()
        return True


def ends(sock, timeout=10):
    """Read what comes; is the connection closed by the server?"""
    sock.settimeout(timeout)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except socket.timeout:
        return False
    return True


def reset(client):
    """Close with RST instead of FIN."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    client.close()


def doubling(start, times):
    """A pickle that names the previous value twice, again and again."""
    data = start
    for i in range(times):
        data += b'h' + bytes([i]) + b'h' + bytes([i]) + b'\x86q' + bytes([i + 1])
    return data


def busy(pid, seconds):
    """The share of a processor that a process takes, over some seconds."""
    def ticks():
        with open('/proc/%d/stat' % pid) as f:
            fields = f.read().rpartition(')')[2].split()
        return int(fields[11]) + int(fields[12])
    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf('SC_CLK_TCK') / seconds


if __name__ == '__main__':
    server.main()
