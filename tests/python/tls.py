"""TLS: who is let in, what both sides are told, and what it costs.

    tls.py [TEST ...]
    tls.py --figures [--rounds N] [--seconds S]     loads and commits with and without TLS

Certificates are made by the openssl command; without it all is skipped.
"""
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings

import ZODB
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.utils import maxtid

import certificates
import server
from server import dial
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests', 'conformance'))
sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))

import environment  # noqa: E402 (in the directory above)
import matrix  # noqa: E402
from harness.rawclient import Hangup  # noqa: E402 (of the conformance tests)
from harness.rawclient import Raw
from harness.rawclient import filler

HERE = os.path.dirname(os.path.abspath(__file__))
VERSIONS = {'TLS 1.2': ssl.TLSVersion.TLSv1_2, 'TLS 1.3': ssl.TLSVersion.TLSv1_3}

# What the two servers do with a client that has this certificate. Where they differ, why:
LENIENT = 'it is configured itself, so its operator means it'
FORMAL = 'OpenSSL is asked to be strict, and misses an extension'
CLIENTS = {
    # name: (runzeo, standbyd, reason if they differ)
    'signed': (True, True, None),
    'signed-v1': (True, True, None),
    'signed-plain': (True, True, None),         # without any extension
    'signed-careless': (True, True, None),      # it may sign others, too
    'signed-formless': (False, True, FORMAL),   # as above, but it does not say what its key is for
    'by-self': (False, False, None),            # the same of the one that has signed
    'signed-rsa': (True, True, None),
    'self': (True, True, None),                 # as `openssl req -x509` makes it
    'self-rsa': (True, True, None),
    'self-v1': (False, True, LENIENT),
    'self-leaf': (True, True, None),            # self-signed, and no authority
    'chain': (True, True, None),
    'chain-missing': (False, False, None),
    'expired': (False, False, None),
    'early': (False, False, None),
    'for-servers': (False, False, None),
    'for-nothing': (False, False, None),        # a key usage that clients have no use for
    'unknown': (False, False, None),
    'unknown-self': (False, False, None),
    'by-leaf': (False, False, None),            # signed by one that must not sign
    'by-expired': (False, False, None),         # signed by an authority that has expired
    'weak-key': (False, False, None),
    'weak-digest': (False, False, None),
    'none': (False, False, None),
}

maker = None
silent = None


def setUpModule():
    global maker, silent
    directory = tempfile.mkdtemp(prefix='sb')
    unittest.addModuleCleanup(shutil.rmtree, directory, ignore_errors=True)
    maker = certificates.Maker(directory)
    make_certificates()
    silent = Silent()
    unittest.addModuleCleanup(silent.end)


def make_certificates():
    m = maker
    m.self_signed('server', 'subjectAltName=DNS:localhost')
    for name in 'ca', 'stranger':
        m.self_signed(name, certificates.AUTHORITY)
    m.signed('signed', 'ca')
    m.version_1('signed-v1', 'ca')
    m.signed('signed-plain', 'ca', '')
    m.signed('signed-careless', 'ca', certificates.AUTHORITY.replace(
        'keyUsage=critical', 'keyUsage=critical,digitalSignature'))
    m.signed('signed-formless', 'ca', 'basicConstraints=critical,CA:TRUE\n')
    m.signed('signed-rsa', 'ca', bits=2048)
    m.self_signed('self')
    m.self_signed('self-rsa', bits=2048)
    m.signed('by-self', 'self')
    m.version_1('self-v1')
    m.self_signed('self-leaf', 'basicConstraints=critical,CA:FALSE')
    m.signed('middle', 'ca', certificates.AUTHORITY)
    m.signed('chain-missing', 'middle')
    m.write('chain.pem', m.read('chain-missing.pem') + m.read('middle.pem'))
    shutil.copy(m.path('chain-missing-key.pem'), m.path('chain-key.pem'))
    m.signed('expired', 'ca', end='20200102000000Z')
    m.signed('early', 'ca', start='20981231000000Z')
    m.signed('for-servers', 'ca', 'extendedKeyUsage=serverAuth\n')
    m.signed('for-nothing', 'ca', 'keyUsage=critical,keyEncipherment\n')
    m.signed('unknown', 'stranger')
    m.self_signed('unknown-self')
    m.signed('by-leaf', 'self-leaf')
    m.key('ended')
    m.request('ended')
    m.write('ended.ext', certificates.AUTHORITY + 'subjectKeyIdentifier=hash\n')
    m.openssl('ca', '-batch', '-notext', '-selfsign', '-config', 'ca.conf',
              '-keyfile', 'ended-key.pem', '-startdate', '20200101000000Z',
              '-enddate', '20200102000000Z', '-extfile', 'ended.ext', '-in', 'ended.csr',
              '-out', 'ended.pem')
    m.signed('by-expired', 'ended')
    m.signed('weak-key', 'ca', bits=1024)
    m.signed('weak-digest', 'ca', digest='sha1')
    trusted = ['ca', 'self', 'self-rsa', 'self-v1', 'self-leaf', 'ended']
    m.write('clients.pem', ''.join(m.read(name + '.pem') for name in trusted))


def ssl_section(**options):
    options = dict({'certificate': maker.path('server.pem'), 'key': maker.path('server-key.pem'),
                    'authenticate': maker.path('clients.pem')}, **options)
    lines = ['  %s %s' % (key.replace('_', '-'), value) for key, value in options.items()]
    return '\n'.join(['<ssl>'] + lines + ['</ssl>'])


def context(client='signed', version=None):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.check_hostname = False
    c.load_verify_locations(maker.path('server.pem'))
    if version:
        c.minimum_version = c.maximum_version = version
    # Weak certificates are for the server to refuse.
    c.set_ciphers('DEFAULT:@SECLEVEL=0')
    if client != 'none':
        c.load_cert_chain(maker.path(client + '.pem'), maker.path(client + '-key.pem'))
    return c


class Silent:
    """A server, and connections to it that do not shake hands, while other tests run: what a
    server does to these takes it a minute."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.server = server.Server(self.directory, zeo=ssl_section()).start()
        self.plain = dial(self.server.address)
        self.half = dial(self.server.address)
        self.half.sendall(bytes.fromhex('16030100c8010000c40303'))
        self.half_hello = dial(self.server.address)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = context().wrap_bio(incoming, outgoing)
        try:
            hello.do_handshake()
        except ssl.SSLWantReadError:
            pass
        # It is answered, and then nothing comes.
        self.half_hello.sendall(outgoing.read())

    def end(self):
        for s in self.plain, self.half, self.half_hello:
            s.close()
        try:
            self.server.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


class Case(unittest.TestCase):

    command = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def serve(self, zeo=None, **options):
        s = server.Server(self.directory, command=self.command,
                          zeo=ssl_section() if zeo is None else zeo, **options)
        self.addCleanup(s.stop)
        return s.start()

    def connect(self, s, context_=None, **options):
        client = Raw(s.address, context=context_ or context(), **options)
        self.addCleanup(client.close)
        return client

    def refused(self, s, context_):
        """Why a client is not let in, or None."""
        try:
            client = Raw(s.address, context=context_, handshake=False)
        except OSError as error:        # SSLError is one
            return str(error)
        try:
            client.socket.settimeout(20)
            # With TLS 1.3 the client learns of it when it reads.
            return None if client.socket.recv(1) else 'end'
        except OSError as error:
            return str(error)
        finally:
            client.close()

    def logged(self, s, pattern):
        try:
            eventually(lambda: re.search(pattern, s.output()), 10)
        except AssertionError:
            self.fail('%s is not in\n%s' % (pattern, s.output()))


class WhoIsLetInTests(Case):

    def check(self, column):
        s = self.serve()
        wrong = []
        for name, expected in CLIENTS.items():
            for version in VERSIONS.values():
                reason = self.refused(s, context(name, version))
                if (reason is None) != expected[column]:
                    wrong.append('%s, %s: %s' % (name, version.name, reason or 'let in'))
        self.assertEqual(wrong, [])
        # It still works.
        self.assertIsNone(self.connect(s).call('ping'))
        s.stop()

    def test_clients_of_standbyd(self):
        self.check(1)

    def test_differences_have_reasons(self):
        for name, (reference, ours, reason) in CLIENTS.items():
            self.assertEqual(reference != ours, reason is not None, name)


class WhoIsLetInByRunzeoTests(WhoIsLetInTests):
    """The table is true, and not only what we wish."""

    command = server.REFERENCE

    def test_clients_of_standbyd(self):
        self.check(0)


class RevocationTests(Case):

    def test_revoked_clients_are_refused(self):
        maker.signed('dismissed', 'ca')
        list_ = maker.revocation_list('ca', 'dismissed')
        clients = maker.write('revocation.pem', maker.read('ca.pem') + list_)
        for command in None, server.REFERENCE:
            self.command = command
            s = self.serve(ssl_section(authenticate=clients))
            self.assertIsNone(self.refused(s, context('signed')))
            reason = self.refused(s, context('dismissed'))
            self.assertIsNotNone(reason)
            if command is None:
                self.assertIn('revoked', reason)
            s.stop()


class MessageTests(Case):
    """What both sides are told."""

    def test_refused_certificates(self):
        for name, alert, line in (
                ('expired', 'certificate expired', r"the client's certificate has expired "
                 r'\(CN=expired, valid from 2020-01-01T00:00:00Z to 2020-01-02T00:00:00Z\)'),
                ('early', 'certificate expired', r'is not valid yet \(CN=early'),
                ('unknown', 'unknown ca', r'is not known \(CN=unknown; it is not among'),
                ('by-self', 'unknown ca', r'is not known \(CN=by-self; .* does not say that it may'),
                ('for-servers', 'unsupported certificate',
                 r'is not meant for clients \(CN=for-servers'),
                ('none', 'certificate required', r'the client has no certificate')):
            # One for each, since what is much the same is logged once.
            s = self.serve()
            for version in VERSIONS.values():
                reason = self.refused(s, context(name, version))
                self.assertIn(alert, (reason or 'let in').lower().replace('_', ' '))
            self.logged(s, r'WARNING ZEO.StorageServer \(c\d+ 127\.0\.0\.1:\d+\) refused \(TLS: .*'
                        + line)
            s.stop()

    def test_the_same_refusal_is_logged_once_in_a_while(self):
        s = self.serve()
        for _ in range(20):
            self.assertIsNotNone(self.refused(s, context('expired')))
        self.connect(s).call('ping')
        self.assertEqual(s.output().count('refused (TLS: '), 1, s.output())

    def test_a_client_that_refuses_the_server(self):
        s = self.serve()
        c = context()
        c.check_hostname = True
        with self.assertRaises(ssl.SSLCertVerificationError):
            c.wrap_socket(dial(s.address), server_hostname='example.com')
        self.logged(s, r'refused \(TLS: the client refuses us: .*ertificate')

    def test_plain_bytes_to_tls(self):
        s = self.serve()
        for data in b'\0\0\0\x02Z5', b'\0\0\0\x04ruok', b'GET / HTTP/1.1\r\n\r\n':
            plain = dial(s.address)
            plain.sendall(data)
            answer = b''
            try:
                while True:
                    more = plain.recv(100)
                    if not more:
                        break
                    answer += more
            except ConnectionError:
                pass
            plain.close()
            # A fatal alert of TLS, and nothing else.
            self.assertRegex(answer, rb'^\x15\x03.\x00\x02\x02.$')
        self.logged(s, r'refused \(TLS: it does not speak TLS: a client without <ssl>\?')

    def test_tls_to_plain(self):
        s = self.serve('')
        for version in VERSIONS.values():
            with self.assertRaises(OSError):
                Raw(s.address, context=context('none', version))
        self.logged(s, r'closed \(it speaks TLS, and <zeo> has no <ssl>\)')
        Raw(s.address).close()

    def test_old_versions(self):
        s = self.serve()
        c = context()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            c.minimum_version = ssl.TLSVersion.TLSv1
            c.maximum_version = ssl.TLSVersion.TLSv1_1
        reason = self.refused(s, c)
        self.assertRegex(reason.lower(), 'protocol.version|handshake.failure')
        self.logged(s, r'refused \(TLS: no common version or cipher')

    def test_renegotiation_is_refused(self):
        s = self.serve()
        process = subprocess.Popen(
            ['openssl', 's_client', '-tls1_2', '-connect', '%s:%d' % s.address,
             '-cert', maker.path('signed.pem'), '-key', maker.path('signed-key.pem')],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(process.stdout.close)
        timer = threading.Timer(20, process.kill)
        timer.start()
        try:
            # When the greeting has come all is settled.
            seen = b''
            while b'\0\0\0\x02Z5' not in seen:
                more = os.read(process.stdout.fileno(), 4096)
                self.assertTrue(more, seen)
                seen += more
            process.stdin.write(b'R\n')
            process.stdin.flush()
            rest = process.stdout.read()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdin.close()
        self.assertIn(b'no renegotiation', rest.lower())
        self.assertIsNone(self.connect(s).call('ping'))


class ServiceTests(Case):
    """All works as without TLS."""

    def smoke(self, msgpack, version, address=None):
        s = self.serve(msgpack=msgpack, address=address)
        c = self.connect(s, context('signed', version))
        (small,), serial = c.new(filler(100))
        data = filler(3 << 20)
        (large,), _ = c.new(data)
        self.assertEqual(c.call('loadBefore', large, maxtid)[0], data)
        for _ in range(20):
            serial = c.commit((small, serial, filler(100)))
        # Many answers on the way at a time.
        calls = [c.start('loadBefore', large, maxtid, msgid=('l', n)) for n in range(20)]
        for call in calls:
            self.assertEqual(c.result(call)[0], data)
        s.stop()
        with self.assertRaises((Hangup, OSError)):
            c.call('ping')

    def test_pickle_tls_1_2(self):
        self.smoke(False, ssl.TLSVersion.TLSv1_2)

    def test_pickle_tls_1_3(self):
        self.smoke(False, ssl.TLSVersion.TLSv1_3)

    def test_msgpack(self):
        self.smoke(True, ssl.TLSVersion.TLSv1_3)

    def test_unix_socket(self):
        self.smoke(False, None, os.path.join(self.directory, 'socket'))

    def test_a_connection_ends_with_close_notify(self):
        s = self.serve()
        for version in VERSIONS.values():
            c = self.connect(s, context('signed', version))
            c.socket.suppress_ragged_eofs = False
            # An asynchronous call that fails ends a connection.
            c.tell('tpc_begin', 1, 2, 3)
            self.assertEqual(c.socket.recv(1), b'')
        c = self.connect(s)
        c.socket.suppress_ragged_eofs = False
        s.stop()
        self.assertEqual(c.socket.recv(1), b'')

    def test_a_client_may_say_good_bye_and_keep_the_socket(self):
        # In one piece with a last call: no event of the socket tells of the end.
        s = self.serve()
        for version in VERSIONS.values():
            c = self.connect(s, context('signed', version))
            c.socket.settimeout(20)
            c.socket.sendall(c.message(0, True, 'set_client_label', ('leaving',)))
            c.socket.unwrap().close()       # waits for the server's good-bye
            self.logged(s, r'\(leaving c\d+ \S+\) disconnected')

    def test_an_end_without_close_notify_is_one(self):
        s = self.serve()
        c = self.connect(s)
        c.begin()
        c.vote()
        c.socket.shutdown(socket.SHUT_RDWR)
        d = self.connect(s)
        d.begin()
        self.assertEqual(list(d.result(d.start('vote', d.transaction))), [])

    def test_who_takes_nothing_is_not_read(self):
        s = self.serve()
        c = self.connect(s)
        (oid,), _ = c.new(filler(1 << 20))
        before = s.resident()
        deaf = self.connect(s)
        deaf.socket.settimeout(1)
        message = deaf.message(('l', 1), False, 'loadBefore', (oid, maxtid))
        try:
            for _ in range(100000):
                deaf.socket.sendall(message)
        except (socket.timeout, ssl.SSLError):
            pass
        else:
            self.fail('everything was taken')
        self.assertIsNone(c.call('ping'))
        self.assertLess(s.resident() - before, 150 << 20)

    def test_tampered_records_cost_the_connection(self):
        s = self.serve()
        c = self.connect(s)
        raw = socket.socket(fileno=os.dup(c.socket.fileno()))
        raw.sendall(b'\x17\x03\x03\x00\x20' + b'x' * 32)
        raw.close()
        self.assertTrue(c.hangs_up())
        self.logged(s, r'disconnected \(TLS: cannot decrypt')
        self.assertIsNone(self.connect(s).call('ping'))

    def test_clients_of_all_pythons(self):
        s = self.serve()
        tried = []
        for version in matrix.PYTHONS:
            python = matrix.FOUND.get(version)
            if python is None:
                continue
            try:
                path = matrix.packages(version, matrix.newest(version))
            except environment.Unavailable:
                continue
            tried.append(version)
            done = subprocess.run(
                [python, os.path.join(HERE, 'tls_client.py'), str(s.address[1]),
                 maker.path('server.pem'), maker.path('self-rsa.pem'),
                 maker.path('self-rsa-key.pem')],
                env=dict(os.environ, PYTHONPATH=path), stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=120)
            self.assertEqual(done.returncode, 0, '%s: %s' % (version, done.stdout.decode()))
        if not tried:
            self.skipTest('no other Python here')
        print('# Pythons: %s' % ', '.join('%d.%d' % version for version in tried))


class ReloadTests(Case):

    def setUp(self):
        super().setUp()
        for name in 'certificate', 'key', 'authenticate':
            source = {'certificate': 'server.pem', 'key': 'server-key.pem',
                      'authenticate': 'clients.pem'}[name]
            shutil.copy(maker.path(source), self.path(name))
        self.server = self.serve(ssl_section(
            certificate=self.path('certificate'), key=self.path('key'),
            authenticate=self.path('authenticate')))

    def path(self, name):
        return os.path.join(self.directory, name)

    def reload(self, line):
        count = self.server.output().count(line)
        self.server.process.send_signal(signal.SIGUSR2)
        eventually(lambda: self.server.output().count(line) > count, 10)

    def subject(self):
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        c.check_hostname = False
        c.verify_mode = ssl.CERT_NONE
        c.load_cert_chain(maker.path('signed.pem'), maker.path('signed-key.pem'))
        with c.wrap_socket(dial(self.server.address)) as s:
            der = s.getpeercert(True)
        pem = ssl.DER_cert_to_PEM_cert(der)
        return maker.openssl('x509', '-in', maker.write('seen.pem', pem), '-noout', '-subject')

    def test_renewed_certificates_are_used_for_new_connections(self):
        before = self.connect(self.server, context('self'))
        self.assertIn('server', self.subject())
        maker.self_signed('renewed', 'subjectAltName=DNS:localhost')
        shutil.copy(maker.path('renewed.pem'), self.path('certificate'))
        shutil.copy(maker.path('renewed-key.pem'), self.path('key'))
        shutil.copy(maker.path('ca.pem'), self.path('authenticate'))
        self.reload('certificates read again')
        self.assertIn('renewed', self.subject())
        c = context('self')
        c.verify_mode = ssl.CERT_NONE
        self.assertIn('unknown ca', self.refused(self.server, c).lower().replace('_', ' '))
        # Who is there stays.
        self.assertIsNone(before.call('ping'))

    def test_damaged_files_change_nothing(self):
        for name in 'certificate', 'key', 'authenticate':
            with open(self.path(name)) as f:
                text = f.read()
            with open(self.path(name), 'w') as f:
                f.write(text[:100])
            self.reload('certificates not read again, the former stay')
            self.logged(self.server, r'<ssl>: %s \S+: ' % name)
            self.assertIsNone(self.connect(self.server).call('ping'))
            with open(self.path(name), 'w') as f:
                f.write(text)
        self.reload('certificates read again')


class StartTests(Case):
    """Nothing is served with certificates that cannot be."""

    def fails(self, line, **options):
        s = server.Server(self.directory, zeo=ssl_section(**options))
        with self.assertRaises(AssertionError) as caught:
            s.start()
        self.assertIn('ended with status 2', str(caught.exception))
        self.assertRegex(str(caught.exception), line)
        self.assertFalse(os.path.exists(os.path.join(self.directory, 'Data.fs')))

    def test_files_that_are_not_there(self):
        for name in 'certificate', 'key', 'authenticate':
            path = os.path.join(self.directory, 'missing')
            self.fails(r'zeo\.conf:4: <ssl>: %s %s: No such file' % (name, path), **{name: path})

    def test_files_that_do_not_fit(self):
        self.fails(r'key \S+/signed-key.pem: the key does not belong to the certificate',
                   key=maker.path('signed-key.pem'))
        self.fails(r'key \S+/server.pem: there is no private key', key=maker.path('server.pem'))

    def test_passwords(self):
        maker.openssl('pkcs8', '-topk8', '-in', 'server-key.pem', '-passout', 'pass:1234',
                      '-out', 'locked.pem')
        locked = maker.path('locked.pem')
        self.fails('the key is encrypted: a password-file or a password-command is needed',
                   key=locked)
        self.fails('the password is wrong', key=locked,
                   password_file=maker.write('password', '4321\n'))
        self.fails(r'password-command false: it failed \(exit status: 1\)', key=locked,
                   password_command='false')
        self.fails(r"zeo\.conf:8: password-function: 'm\.f' is not empty", key=locked,
                   password_function='m.f')
        for options in ({'password_file': maker.write('password', '1234\n')},
                        {'password_command': 'echo 1234'}):
            s = self.serve(ssl_section(key=locked, **options))
            self.assertIsNone(self.connect(s).call('ping'))
            s.stop()


class ZODBTests(Case):
    """The stock client, with the configuration that ZEO's manual shows."""

    def test_a_site(self):
        s = self.serve()
        storage = ClientStorage(s.address, ssl=context('self'), wait_timeout=20)
        self.addCleanup(storage.close)
        db = ZODB.DB(storage)
        with db.transaction() as connection:
            connection.root()['big'] = b'x' * (2 << 20)
        s.stop()
        s.start()
        eventually(lambda: server.answers(storage))
        with db.transaction() as connection:
            connection.cacheMinimize()
            connection.root()['again'] = len(connection.root()['big'])
        with self.assertRaises(ClientDisconnected):
            ClientStorage(s.address, ssl=context('unknown'), wait_timeout=1)
        self.logged(s, 'is not known .CN=unknown')


class ZSilentTests(Case):
    """Last by its name, since it waits for what was begun first."""

    def test_connections_that_never_shake_hands_end_in_a_minute(self):
        c = self.connect(silent.server)
        for s in silent.plain, silent.half, silent.half_hello:
            s.settimeout(90)
            while s.recv(4096):
                pass
        self.logged(silent.server, r'TLS: it waits for us to begin: a client without <ssl>\?')
        self.logged(silent.server, r'TLS: the handshake is not done in time')
        self.assertIsNone(c.call('ping'))


# --- figures

def figures(rounds, seconds):
    """Prints a Markdown table; see figures.py for how it is measured."""
    import figures as f
    global maker
    load_before = os.getloadavg()[0]
    directory = tempfile.mkdtemp(prefix='figures-')
    maker = certificates.Maker(os.path.join(directory, 'certificates'))
    maker.self_signed('server', 'subjectAltName=DNS:localhost')
    maker.self_signed('self')
    shutil.copy(maker.path('self.pem'), maker.path('clients.pem'))
    files = f.Files(directory, 1000)
    plain_raw = f.Raw
    measures = {
        'loads/s, 8 clients, 300 bytes': lambda s: sum(
            f.together(f.load_many, f.LOADERS, s.address, seconds)),
        'commits/s, 16 clients': lambda s: sum(
            f.together(f.commit_many, f.COMMITTERS, s.address, seconds)),
        'MB/s of 1 MB objects, 1 client': lambda s: load_large(f.Raw, s.address, seconds),
        'MB/s stored in 1 MB objects, 1 client': lambda s: store_large(f.Raw, s.address, seconds),
        'connections/s, 1 client': lambda s: connect_many(f.Raw, s.address, seconds),
    }
    results = {}
    try:
        for round_ in range(rounds):
            for label, command, tls in (
                    ('runzeo', server.REFERENCE, False), ('runzeo TLS', server.REFERENCE, True),
                    ('standbyd', None, False), ('standbyd TLS', None, True)):
                f.Raw = plain_raw
                if tls:
                    f.Raw = lambda address: plain_raw(address, context=context('self'))
                for measure, run in measures.items():
                    directory_ = tempfile.mkdtemp(dir=directory)
                    for suffix in '', '.index':
                        shutil.copy(files.small + suffix,
                                    os.path.join(directory_, 'Data.fs' + suffix))
                    s = server.Server(directory_, command=command, zeo=ssl_section() if tls else '')
                    s.start()
                    try:
                        results.setdefault((measure, label), []).append(run(s))
                    finally:
                        f.finish(s)
                print('# round %d: %s' % (round_ + 1, label), file=sys.stderr)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    labels = list(dict.fromkeys(label for _, label in results))
    print('| | %s |' % ' | '.join(labels))
    print('|---|%s' % ('---:|' * len(labels)))
    for measure in measures:
        cells = [cell(results[measure, label]) for label in labels]
        print('| %s | %s |' % (measure, ' | '.join(cells)))
    print('\n%d rounds of %g s; median (least-most). Load average: %s before, %s after.' % (
        (rounds, seconds) + tuple('%.1f' % load for load in (load_before, os.getloadavg()[0]))))


def cell(values):
    """With the spread: on a busy machine it says more than the median."""
    return '%s (%s-%s)' % tuple(
        format(round(value), ',')
        for value in (statistics.median(values), min(values), max(values)))


def load_large(raw, address, seconds):
    client = raw(address)
    (oid,), _ = client.new(filler(1 << 20))
    request = client.message(('l', 1), False, 'loadBefore', (oid, maxtid))
    received = sent = 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        while sent - received < 4 << 20:
            client.socket.sendall(request)
            sent += 1 << 20
        received += len(client.socket.recv(1 << 18))
    return received / (time.monotonic() - start) / 1e6


def store_large(raw, address, seconds):
    client = raw(address)
    data = filler(1 << 20)
    (oid,), serial = client.new(data)
    count = 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        serial = client.commit((oid, serial, data))
        count += 1
    return count * len(data) / (time.monotonic() - start) / 1e6


def connect_many(raw, address, seconds):
    count = 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        raw(address).close()
        count += 1
    return count / (time.monotonic() - start)


if __name__ == '__main__':
    if '--figures' in sys.argv:
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument('--figures', action='store_true')
        parser.add_argument('--rounds', type=int, default=3)
        parser.add_argument('--seconds', type=float, default=3)
        arguments = parser.parse_args()
        figures(arguments.rounds, arguments.seconds)
    elif not certificates.AVAILABLE:
        print('SKIPPED: no openssl command here: TLS IS NOT TESTED')
        server.summary(0, 0, 1)
    else:
        server.main()
