"""Rows of failover.py: what nodes do with each other beside the daemon, and what goes with the
office of a primary."""
import contextlib
import json
import os
import socket
import ssl
import time

import transaction
import ZODB.blob

import certificates
import cluster
import ledger
import server

NODE = ('basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n'
        'extendedKeyUsage=serverAuth,clientAuth\n')
COPIED = int(os.environ.get('STANDBY_COPIED_MB') or 24)     # MB that are copied, with and without


def status(node):
    """What /status says, or None."""
    answer = node.asked('/status')
    return json.loads(answer[1]) if answer and answer[0] == 200 else None


def troubles(node):
    found = status(node)
    return None if found is None else found['troubles']


def wait_trouble(node, *texts):
    """Wait until the status of a node has all of these in one line, and its log, too."""
    def is_there(lines):
        return any(all(text in line for text in texts) for line in lines)

    try:
        server.eventually(lambda: is_there(troubles(node) or []), 40)
    except AssertionError:
        raise AssertionError('%s: nothing of %s, but %s' % (
            node.name, texts, troubles(node))) from None
    assert is_there(node.output(100000).split('\n')), 'not in the log: %s' % (texts,)


class Rows:
    """To be inherited; `self.cluster`, `self.started`, `self.open` and `self.close` are there."""

    def blame(self):
        """who is to blame for what is missing stands in the status, and in the log"""
        with self.cluster() as c:
            alpha = self.started(c)
            gamma = c.node('gamma')
            c.settle()

            def is_well():
                return all(troubles(node) == [] and all(
                    member['heard'] is not None and member['heard'] < 3
                    for member in status(node)['members']) for node in c.nodes)

            server.eventually(is_well, cluster.PATIENCE)

            def said_by_alpha():
                return next(member['direct'] for member in status(gamma)['members']
                            if member['node'] == 'alpha')

            def is_told():
                said = said_by_alpha()
                return said and said['role'] == 'primary' and said['members'] == 3 and (
                    said['round_trip'] is not None and said['round_trip'] < 3)

            server.eventually(is_told, cluster.PATIENCE)
            c.partition([alpha, c.node('beta')], [gamma])
            wait_trouble(alpha, 'does not show gamma', 'is in a view of 1')
            wait_trouble(gamma, 'does not show alpha', 'is in a view of 2')
            page = alpha.asked('/metrics')[1].decode()
            assert 'standby_member_trouble{member="gamma",kind="daemon"} 1' in page, page
            assert 'standby_member_heard_seconds{member="gamma"}' in page, page
            c.merge()
            server.eventually(is_well, cluster.PATIENCE)
            c.stop(gamma)
            wait_trouble(alpha, "gamma's server does not answer", 'hung or stopped')
            assert '! gamma' in c.command(alpha, 'status')
            c.cont(gamma)
            server.eventually(is_well, cluster.PATIENCE)
            c.kill(gamma)
            wait_trouble(alpha, 'gamma is not heard by either path', 'does not run there')
            c.restart(gamma)
            server.eventually(is_well, cluster.PATIENCE)
            c.daemon.kill()
            wait_trouble(alpha, 'no node is in a view', 'beta, gamma')
            c.daemon.start()
            server.eventually(is_well, cluster.PATIENCE)
            assert 'gamma is heard again' in alpha.output(100000)
            return c.stop_all()

    def witnesses(self):
        """a node that hears nobody says whether it is cut off, if it has a witness"""
        with socket.create_server(('127.0.0.1', 0), backlog=1) as witness:
            port = witness.getsockname()[1]
            with self.cluster(witness='127.0.0.1:%d' % port) as c:
                alpha = self.started(c)
                server.eventually(lambda: any(
                    it['answers'] for it in status(alpha)['witnesses']), cluster.PATIENCE)
                complaints = c.stop_all()
                with taken(witness):
                    c.restart(alpha)
                    wait_trouble(alpha, 'the others are gone, the network is there',
                                 '127.0.0.1:%d answers' % port)
                    assert not status(alpha)['isolated']
                    c.kill(alpha)
                # Nobody takes connections there, and there is no room for more: it is silent.
                with contextlib.ExitStack() as stack:
                    for _ in range(8):
                        s = stack.enter_context(socket.socket())
                        s.setblocking(False)
                        s.connect_ex(('127.0.0.1', port))
                    c.restart(alpha)
                    wait_trouble(alpha, 'isolated: no other node and no witness is heard')
                    assert 'standby_isolated 1' in alpha.asked('/metrics')[1].decode()
                    assert '127.0.0.1:%d SILENT' % port in c.command(alpha, 'status')
                return complaints + c.stop_all()

    def office(self):
        """on-promote and on-demote run in order, and where one fails nobody writes"""
        with self.cluster() as c:
            log = os.path.join(c.directory, 'office')
            fails = os.path.join(c.directory, 'fails')
            line = 'echo $$STANDBY_NODE $$STANDBY_ROLE $$STANDBY_REASON $$STANDBY_EPOCH >>%s' % log
            c.options['on-promote'] = '%s; ! test -e %s-$$STANDBY_NODE' % (line, fails)
            c.options['on-demote'] = line
            self.started(c)

            def seen(name):
                with open(log) as f:
                    lines = [text.split() for text in f]
                return [tuple(words[1:3]) for words in lines if words[0] == name]

            start, elected, demoted, stopped = (
                ('replica', 'start'), ('primary', 'elected'), ('replica', 'demoted'),
                ('replica', 'stopped'))
            db = self.open(c.addresses)
            put(db, 1)
            c.settle()
            before = {name: seen(name) for name in cluster.NAMES}
            assert all(lines[0] == start for lines in before.values()), before
            assert before['alpha'][-1] == elected, before
            c.command(c.node('alpha'), 'swap', 'beta')
            persist(lambda: put(db, 2), cluster.PATIENCE)
            server.eventually(lambda: seen('alpha')[-1] == demoted, cluster.PATIENCE)
            assert seen('beta')[-1] == elected
            # Where it fails, another one is primary soon, and writers are let in there.
            c.settle()
            open(fails + '-gamma', 'w').close()
            c.ctl(c.node('beta'), 'swap', 'gamma')
            persist(lambda: put(db, 3), cluster.PATIENCE)
            primary = c.wait_primary()
            assert primary.name != 'gamma'
            assert seen(primary.name)[-1] == elected
            server.eventually(lambda: seen('gamma')[-2:] == [elected, demoted], cluster.PATIENCE)
            text = c.node('gamma').output(100000)
            assert 'on-promote has failed (exit status: 1)' in text, text
            # A process that ends gives up what it has.
            self.close()
            complaints = c.stop_all()
            last = {name: seen(name)[-1] for name in cluster.NAMES}
            assert all(line in (start, demoted, stopped) for line in last.values()), last
            return complaints

    def encrypted(self):
        """nodes with <ssl> copy from each other, and talk to nobody without a certificate"""
        if not certificates.AVAILABLE:
            return ['there is no openssl']
        took = {}
        for is_encrypted in False, True:
            with self.cluster() as c:
                if is_encrypted:
                    self.certify(c)
                alpha = self.started(c)
                beta = c.node('beta')
                db = self.open(c.addresses, blob_dir=os.path.join(c.directory, 'client-blobs'))
                for number in range(COPIED // 8):
                    put_blob(db, os.urandom(8 << 20), 'b%d' % number)
                put(db, 1)
                c.settle()
                c.kill(beta)
                c.wipe(beta)
                began = time.monotonic()
                c.restart(beta)
                c.settle()
                took[is_encrypted] = time.monotonic() - began
                if is_encrypted:
                    self.meets_strangers(c, alpha)
                self.close()
                complaints = c.stop_all() + c.converged()
                if complaints:
                    return complaints
        print('   a copy of %d MB and a start took %.1f s, and with TLS %.1f s' % (
            COPIED, took[False], took[True]))
        return None

    def certify(self, c):
        """Certificates for all nodes, by one authority."""
        maker = certificates.Maker(os.path.join(c.directory, 'certificates'))
        maker.self_signed('ca', certificates.AUTHORITY)
        for node in c.nodes:
            maker.signed(node.name, 'ca', NODE)
            c.sections[node.name] = [
                '<ssl>', 'certificate ' + maker.path(node.name + '.pem'),
                'key ' + maker.path(node.name + '-key.pem'),
                'authenticate ' + maker.path('ca.pem'), '</ssl>']

    def meets_strangers(self, c, alpha):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError), server.dial(alpha.peer_address) as s:
            with context.wrap_socket(s) as tls:
                tls.recv(1)
        wait_log(alpha, 'it has no certificate')
        with contextlib.suppress(OSError), server.dial(alpha.peer_address) as s:
            s.sendall(b'stdbpeer\0\1')
            s.recv(1)
        wait_log(alpha, 'it does not speak TLS')
        # A node that was forgotten.
        gamma = c.node('gamma')
        c.kill(gamma)
        section, c.sections['gamma'] = c.sections['gamma'], []
        c.restart(gamma)
        wait_trouble(alpha, 'there is not gamma', '<ssl>')
        c.kill(gamma)
        c.sections['gamma'] = section
        c.restart(gamma)
        c.settle()
        server.eventually(lambda: troubles(alpha) == [], cluster.PATIENCE)

    ALL = ['blame', 'witnesses', 'office', 'encrypted']


def wait_log(node, text):
    server.eventually(lambda: text in node.output(100000), cluster.PATIENCE)


@contextlib.contextmanager
def taken(listener):
    """Somebody accepts there."""
    import threading
    listener.settimeout(.1)
    over = threading.Event()

    def accept():
        while not over.is_set():
            with contextlib.suppress(OSError):
                listener.accept()[0].close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def persist(function, seconds):
    """Try until it does not lose the connection."""
    until = time.monotonic() + seconds
    while True:
        try:
            return function()
        except ledger.LOST_CONNECTION:
            if time.monotonic() > until:
                raise
            time.sleep(.05)


def put(db, value, name='x'):
    with db.transaction() as connection:
        connection.root()[name] = value


def put_blob(db, data, name):
    connection = db.open(transaction.TransactionManager())
    with contextlib.closing(connection):
        blob = ZODB.blob.Blob()
        with blob.open('w') as f:
            f.write(data)
        connection.root()[name] = blob
        connection.transaction_manager.commit()
