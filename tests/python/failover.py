"""A cluster under real clients: what fails, and what nobody may notice of it.

    failover.py [--only STEP ...] [--list]
    failover.py --self-test

Three nodes, a group daemon, and clients of stock ZEO. First by itself what ZEO clients are known
to stumble over; M1 to M12 are names of the manual (page replication). Then all kinds of faults,
one after the other, while clients write and read: each writer has to go on after each of them. At
the end all that was acknowledged has to be there, nothing may be there twice or although it was
refused, nothing that was read may have gone back, and all nodes have to have the same.

`--self-test` takes from a node a transaction that was acknowledged: the checks have to find that
out.

With STANDBY_LONG=1 there are more clients, and pauses are longer than daemons believe in.
"""
import argparse
import contextlib
import glob
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time

import transaction
import ZODB
import ZODB.blob
import ZODB.POSException
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileIterator
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64
from ZODB.utils import u64

import beside_daemon
import cluster
import ledger
import server
from cluster import Cluster

sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))

import environment  # noqa: E402 (in the directory above)

LONG = bool(os.environ.get('STANDBY_LONG'))
WRITERS = 20 if LONG else 6
PAUSE = 30 if LONG else 8       # seconds that a primary is stopped
BULK = 2 << 20                  # bytes of each object that makes a pack take a while
LEASE = 1                       # seconds, as in Cluster
DISK = 1 << 30                  # of the node that gets none left; packs keep the file before
NO_ROOM = ('as the disk is full', 'entries cannot be appended', 'No space left')
FAILOVER = 60                   # seconds that a client may take to write again


# --- what clients stumble over

class Rows(beside_daemon.Rows):
    """Each a cluster of its own. Names are those of measurements of stock clients."""

    def __init__(self, directory):
        self.directory = directory
        self.databases = []

    def cluster(self, *arguments, **options):
        # Who takes over is no accident, as logs are equal.
        options.setdefault('priority', {'alpha': 30, 'beta': 20, 'gamma': 10})
        # No row is about leases: nobody is to lose the office as the machine is busy.
        options.setdefault('lease', '2s')
        return Cluster(tempfile.mkdtemp(dir=self.directory), *arguments, **options)

    def open(self, addresses, **options):
        options.setdefault('wait_timeout', 60)
        db = ZODB.DB(ClientStorage(addresses, **options))
        self.databases.append(db)
        return db

    def close(self):
        for db in self.databases:
            with contextlib.suppress(Exception):
                db.close()
        self.databases = []

    def started(self, c, **options):
        """Start, with alpha as primary."""
        c.start(**options)
        primary = c.wait_primary()
        if primary.name != 'alpha':
            # It began when alpha was not there yet.
            c.kill(primary)
            server.eventually(lambda: c.primary() is c.node('alpha'), cluster.PATIENCE)
            c.restart(primary)
        return c.node('alpha')

    def any_order_of_start(self):
        """nodes start in any order, with nothing; readers at all of them see what is written"""
        order = random.sample(cluster.NAMES, 3)
        print('   %s' % ' '.join(order))
        with self.cluster() as c:
            c.start(order, pause=random.choice((0, 1.5)))
            primary = c.wait_primary()
            db = self.open(c.addresses)
            put(db, 0)
            readers = [self.open(address, read_only=True) for address in c.read_addresses]
            connections = [reader.open(transaction.TransactionManager()) for reader in readers]
            for connection in connections:
                wait_for(connection, 0)
            for value in range(1, 4):
                put(db, value)
                for connection in connections:
                    wait_for(connection, value)
            with self.refused():
                put(readers[0], 9)
            c.settle()
            assert c.wait_primary() is primary
            self.close()
            return c.stop_all() + c.converged() + ledger.check_sound(primary.data)

    def packs_follow(self):
        """replicas do a pack that another one, to an earlier time, was ordered right behind"""
        with self.cluster() as c:
            c.start()
            c.wait_primary()
            db = self.open(c.addresses)
            for value in range(50):
                put(db, 'x' * 100 * value)
            c.settle()
            primary = c.wait_primary()
            c.command(primary, 'pack', '--days', '0')
            c.command(primary, 'pack', '--days', '1')

            def is_done():
                packs = [(c.status(node) or {}).get('packs') for node in c.nodes]
                if None in packs or [] in packs:
                    return False
                found = {(pack['entry'], pack['state']) for of in packs for pack in of}
                return len(found) == 1 and found.pop()[1] == 'done'

            server.eventually(is_done, cluster.PATIENCE)
            self.close()
            complaints = c.stop_all() + c.converged()
            count = sum(1 for _ in FileIterator(primary.data))
            return complaints + (['there are %d transactions' % count] if count > 10 else [])

    @contextlib.contextmanager
    def refused(self):
        try:
            yield
        except ZODB.POSException.ReadOnlyError:
            return
        raise AssertionError('a reader could write')

    def lost(self, jump, commits):
        """What a client with a cache reads, when its server has lost what it has in there."""
        with self.cluster() as c:
            alpha = c.node('alpha')
            single = server.Server(c.directory)
            path = os.path.join(c.directory, 'Data.fs')
            single.start()
            put(self.open(single.address), 1)
            self.close()
            single.stop()
            shutil.copy(path, alpha.data)
            single.start()
            cache = dict(client='cache', var=c.directory, cache_size=1 << 20)
            db = self.open(single.address, **cache)
            put(db, 666)
            assert got(db) == 666
            self.close()
            single.stop()
            if jump:
                storage = FileStorage(alpha.data)
                lost = u64(storage.lastTransaction())
                t = TransactionMetaData(description='an hour later')
                storage.tpc_begin(t, tid=p64(lost + (60 << 32)))
                storage.tpc_vote(t)
                storage.tpc_finish(t)
                storage.close()
            self.started(c)
            other = self.open(c.addresses)
            assert got(other) == 1
            for _ in range(commits):
                put(other, 5, 'y')
            db = self.open(c.addresses, **cache)
            found = got(db)
            if found != 1:
                return ['the client reads what was lost: %r' % found]
            put(db, got(db) + 1)
            connection = other.open(transaction.TransactionManager())
            wait_for(connection, 2)
            c.settle()
            self.close()
            return c.stop_all() + c.converged()

    def M1_M3(self):
        """M1, M3: a cache that has what the database lost is cleared, after a newer commit"""
        return self.lost(jump=False, commits=1)

    def M11(self):
        """M11: the same if the database jumped ahead of it, without another commit"""
        return self.lost(jump=True, commits=0)

    def restored(self):
        """M1 with a whole cluster set back to what was on its disks before"""
        with self.cluster() as c:
            self.started(c)
            put(self.open(c.addresses), 1)
            self.close()
            c.settle()
            complaints = c.stop_all()
            for node in c.nodes:
                shutil.copytree(node.directory, node.directory + '.old')
            for node in c.nodes:
                c.restart(node)
            c.wait_primary()
            cache = dict(client='cache', var=c.directory, cache_size=1 << 20)
            db = self.open(c.addresses, **cache)
            put(db, 666)
            assert got(db) == 666
            self.close()
            complaints += c.stop_all()
            for node in c.nodes:
                c.wipe(node)
                os.rmdir(node.directory)
                os.rename(node.directory + '.old', node.directory)
            for node in c.nodes:
                c.restart(node)
            c.wait_primary()
            put(self.open(c.addresses), 5, 'y')
            db = self.open(c.addresses, **cache)
            found = got(db)
            self.close()
            complaints += [] if found == 1 else ['the client reads what was lost: %r' % found]
            return complaints + c.stop_all()

    def M4(self):
        """M4: who knows two nodes, and loses the primary, writes at the other one"""
        with self.cluster() as c:
            alpha = self.started(c)
            db = self.open([alpha.address, c.node('beta').address])
            put(db, 1)
            began = time.monotonic()
            c.kill(alpha)
            self.lead(c, c.node('beta'))
            self.goes_on(db, c, began=began)

    def lead(self, c, node):
        """Wait until it is primary: on a busy machine another one may be before it."""
        def leads():
            primary = c.primary()
            if primary and primary is not node:
                print('   %s was first' % primary.name)
                c.ctl(primary, 'swap', node.name)
            return primary is node

        server.eventually(leads, cluster.PATIENCE)

    def goes_on(self, db, c, value=2, began=None):
        began = began or time.monotonic()
        persist(lambda: put(db, value), FAILOVER - (time.monotonic() - began))
        print('   first commit after %.1f s' % (time.monotonic() - began))
        c.alive()

    def M5_M8(self):
        """M5, M8: who fell back to reading writes again when there is a primary"""
        with self.cluster() as c:
            alpha = self.started(c)
            beta = c.node('beta')
            db = self.open(
                [alpha.address, beta.address, beta.read_address], read_only_fallback=True)
            persist(lambda: put(db, 1), FAILOVER)
            began = time.monotonic()
            c.kill(alpha)
            self.lead(c, beta)
            self.goes_on(db, c, began=began)
            # Who could only read ever since it is here writes when another one leads.
            gamma = c.node('gamma')
            db = self.open([alpha.address, gamma.read_address], read_only_fallback=True)
            assert got(db) == 2
            with self.refused():
                put(db, 3)
            c.kill(beta)
            c.restart(alpha)
            began = time.monotonic()
            self.lead(c, alpha)
            self.goes_on(db, c, 3, began)

    def M7(self):
        """M7: who lists a replica first is served by the primary at once"""
        with self.cluster() as c:
            self.started(c)
            for addresses in c.addresses[::-1], c.addresses:
                began = time.monotonic()
                put(self.open(addresses), 1)
                took = time.monotonic() - began
                print('   first commit after %.1f s' % took)
                if took > 8.5:      # a client that goes wrong waits for 9 s
                    return ['it took %.1f s' % took]
            return None

    def M10(self):
        """M10: no oid is handed out twice, whoever is primary"""
        with self.cluster() as c:
            alpha = self.started(c)
            databases = [self.open(c.addresses) for _ in range(2)]
            seen = []
            for name in 'before', 'after':
                for db in databases:
                    persist(lambda: put(db, name), FAILOVER)
                    seen += [persist(db.storage.new_oid, 30) for _ in range(150)]
                if name == 'before':
                    c.kill(alpha)
            if len(set(seen)) != len(seen):
                return ['%d of %d oids were handed out twice' % (
                    len(seen) - len(set(seen)), len(seen))]
            return None

    def M12(self):
        """M12: who waits at two nodes, one of which comes back as primary, is not forgotten"""
        with self.cluster(priority={'alpha': 30, 'beta': 20, 'gamma': 0}) as c:
            alpha = self.started(c)
            db = self.open(c.addresses)
            put(db, 1)
            c.kill(c.node('beta'))
            # Nobody may lead now: gamma has no priority.
            c.kill(alpha)
            c.restart(c.node('beta'))
            self.goes_on(db, c)

    def large_blob(self):
        """nobody waits for the copies of another one's large blob"""
        with self.cluster(bulk_rate='4MB') as c:
            self.started(c)
            blobs = self.open(c.addresses, blob_dir=os.path.join(c.directory, 'cache'))
            for name in 'blob', 'count':
                put(blobs, PersistentMapping(), name)
            other = self.open(c.addresses)
            stored = []

            def store():
                # Each of the others gets all of it, by 4 MB a second together.
                with blobs.transaction() as connection:
                    connection.root()['blob']['x'] = ZODB.blob.Blob(os.urandom(16 << 20))
                stored.append(True)

            storing = threading.Thread(target=store, daemon=True)
            began = time.monotonic()
            storing.start()
            longest = count = 0
            while storing.is_alive():
                at = time.monotonic()
                with other.transaction() as connection:
                    count += 1
                    connection.root()['count']['x'] = count
                longest = max(longest, time.monotonic() - at)
            took = time.monotonic() - began
            print('   %.1f s for the blob, meanwhile %d commits of at most %.2f s' % (
                took, count, longest))
            if not stored:
                return ['the blob was not stored']
            # A commit that waits for the copies waits as long as these take.
            if longest > took / 2:
                return ['%.1f s for one commit, while a blob took %.1f s' % (longest, took)]
            c.settle()
            self.close()
            complaints = c.stop_all() + c.converged()
            for node in c.nodes:
                complaints += stray_blobs(node)
                left = os.listdir(os.path.join(node.directory, 'standby', 'blobs'))
                complaints += ['%s keeps %s' % (node.name, name) for name in left]
            return complaints

    def M2(self):
        """M2, M11: after a forced promotion a client with what was lost in its cache comes back"""
        with self.cluster() as c:
            alpha = self.started(c)
            beta, gamma = c.nodes[1:]
            cache = dict(client='cache', var=c.directory, cache_size=1 << 20)
            db = self.open(c.addresses, **cache)
            put(db, 1)
            c.settle()
            c.kill(gamma)
            put(db, 666)
            assert got(db) == 666
            self.close()
            for node in alpha, beta:
                c.kill(node)
            c.restart(gamma)
            # It takes no writers until it is told that something is lost.
            server.eventually(lambda: c.ctl(gamma, 'status')[0] == 0, cluster.PATIENCE)
            time.sleep(3 * LEASE)
            assert c.ctl(gamma, 'promote')[0], 'promoted without --accept-loss'
            assert not gamma.is_primary()
            said = c.command(gamma, 'promote', '--accept-loss')
            if 'gamma is primary of epoch' not in said:
                return ['what was done is not said: %s' % said]
            # It still listens where it did.
            c.command(gamma, 'status')
            server.eventually(gamma.is_primary, cluster.PATIENCE)
            db = self.open(c.addresses, **cache)
            found = got(db)
            if found != 1:
                return ['the client reads what was lost: %r' % found]
            self.goes_on(db, c)
            # Those that have what was lost are of another history: each ends when it hears of this one.
            for node in alpha, beta:
                c.restart(node)
                server.eventually(lambda: node.process.poll() is not None, cluster.PATIENCE)
                if node.reap() != 6 or 'a loss was accepted at gamma' not in node.output():
                    return ['%s has ended, and not for its history' % node.name]
            self.goes_on(db, c, 3)
            return None

    def verified(self):
        """verify finds a byte that was flipped in one node's Data.fs, and names the transaction"""
        with self.cluster() as c:
            alpha = self.started(c)
            beta = c.node('beta')
            db = self.open(c.addresses, blob_dir=os.path.join(c.directory, 'cache'))
            for number in range(20):
                put(db, 'number %d %s' % (number, 'x' * 5000))
            put(db, ZODB.blob.Blob(b'a blob'), 'blob')
            self.close()
            c.settle()
            for node in c.nodes:
                print('   ' + c.command(node, 'verify', '--all').splitlines()[-1])
            report = json.loads(c.command(alpha, 'verify', '1', '--with', 'beta', '--json'))
            compared, = report['storages'][0]['comparisons']
            assert report['well'] and compared['transactions'] >= 20 and compared['blobs'] == 1, report
            status, output = c.ctl(alpha, 'verify', 'other')
            assert status == 1 and 'there is no storage other' in output, output
            beta.signal(signal.SIGTERM)
            beta.process.wait(30)
            beta.process = None
            tid = flip(beta.data, b'number 7 ')
            c.restart(beta)
            c.settle()
            wrong = []
            for node, words in (alpha, ['--with', 'beta']), (beta, ['--with', 'alpha']), (
                    alpha, ['--all', '--rate', '0']):
                status, output = c.ctl(node, 'verify', *words)
                if status != 6 or 'transaction %s: its content differs' % tid not in output:
                    wrong.append('%s: %d: %s' % (node.name, status, output))
            c.command(alpha, 'verify', '--with', 'gamma')
            # A blob that one of them has lost is missing there, and not the same elsewhere.
            path, = glob.glob(os.path.join(c.node('gamma').directory, 'blobs/0x*/**/*.blob'),
                              recursive=True)
            os.remove(path)
            for node, words in (c.node('gamma'), []), (alpha, ['--with', 'gamma']):
                status, output = c.ctl(node, 'verify', *words)
                if status != 6 or 'blob' not in output.splitlines()[-3]:
                    wrong.append('%s: %d: %s' % (node.name, status, output))
            return wrong + c.stop_all()

    def backed_up(self):
        """a backup of a replica opens with stock ZODB, and has what was committed then"""
        target = os.path.join(self.directory, 'backups')
        os.mkdir(target)
        with self.cluster(backup_directory={'beta': target}) as c:
            self.started(c)
            beta = c.node('beta')
            db = self.open(c.addresses, blob_dir=os.path.join(c.directory, 'cache'))
            tids = []
            for number in range(10):
                put(db, number)
                put(db, ZODB.blob.Blob(b'blob %d' % number), 'blob')
                tids.append(db.lastTransaction())
            c.settle()
            beta_says = c.command(beta, 'backup', tids[4].hex(), '--to', 'then.fs', '--blobs', 'blobs')
            assert tids[4].hex() in beta_says, beta_says
            c.command(beta, 'backup', 'now', '--to', os.path.join(target, 'now.fs'))
            refused = [(['now', '--to', 'now.fs'], 'is there already'),
                       (['now', '--to', '/tmp/now.fs'], 'is not in the backup-directory'),
                       (['7fffffffffffffff', '--to', 'future.fs'], 'the last transaction that is')]
            for words, text in refused:
                status, output = c.ctl(beta, 'backup', *words)
                assert status == 1 and text in output, output
            status, output = c.ctl(c.node('gamma'), 'backup', 'now', '--to', 'x')
            assert status == 1 and 'there is no backup-directory' in output, output
            assert sorted(os.listdir(target)) == ['blobs', 'now.fs', 'then.fs']
            with contextlib.closing(FileIterator(beta.data)) as all_of_it:
                wanted = [content(t) for t in all_of_it]
            for name, last in ('then.fs', tids[4]), ('now.fs', wanted[-1][0]):
                with contextlib.closing(FileIterator(os.path.join(target, name))) as copied:
                    found = [content(t) for t in copied]
                assert found == [t for t in wanted if t[0] <= last], name
            blobs = os.path.join(target, 'blobs')
            restored = self.restored_from(os.path.join(target, 'then.fs'), blobs)
            assert restored == (4, b'blob 4'), restored
            self.close()
            return c.stop_all() + ledger.check_sound(os.path.join(target, 'now.fs'))

    def restored_from(self, path, blobs):
        """What stock ZODB reads there, after it has written."""
        db = ZODB.DB(FileStorage(path, blob_dir=blobs))
        with contextlib.closing(db):
            put(db, True, 'is_written')
            with db.transaction() as connection:
                with connection.root()['blob'].open() as f:
                    return connection.root()['x'], f.read()

    ALL = ['verified', 'backed_up', 'any_order_of_start', 'packs_follow', 'M1_M3', 'M2', 'M11',
           'restored', 'M4', 'M5_M8', 'M7', 'M10', 'M12', 'large_blob'] + beside_daemon.Rows.ALL


def put(db, value, name='x'):
    with db.transaction() as connection:
        connection.root()[name] = value


def got(db, name='x'):
    with db.transaction() as connection:
        return connection.root()[name]


def persist(function, seconds):
    """Try until it does not lose the connection."""
    until = time.monotonic() + seconds
    while True:
        try:
            return function()
        except ledger.LOST_CONNECTION + (ZODB.POSException.ConflictError,):
            if time.monotonic() > until:
                raise
            time.sleep(.05)


def content(t):
    return (t.tid, t.status, t.user, t.description, t.extension_bytes,
            [(r.oid, r.tid, r.data) for r in t])


def flip(path, text):
    """Change a bit in what stands behind this text in a data file; the tid of its transaction."""
    with contextlib.closing(FileIterator(path)) as transactions:
        t = next(t for t in transactions if any(text in (r.data or b'') for r in t))
        tid, start = t.tid, t._tpos
    with open(path, 'r+b') as f:
        f.seek(start)
        pos = start + f.read(100000).index(text) + len(text) + 100
        f.seek(pos)
        byte = f.read(1)
        f.seek(pos)
        f.write(bytes([byte[0] ^ 1]))
    return tid.hex()


def wait_for(connection, value):
    """The connection is told of what others have written."""
    def is_there():
        connection.transaction_manager.begin()
        return connection.root().get('x') == value
    server.eventually(is_there, 30)


# --- faults under load

class Load:
    """One cluster, with clients that write and read while it suffers."""

    def __init__(self, directory, no_mounts, blobs=True):
        self.directory = directory
        self.no_mounts = no_mounts      # why there is no small disk
        self.blobs = blobs
        self.cluster = Cluster(os.path.join(directory, 'cluster'))
        self.before = []        # data files as they were before each pack
        self.writers = ledger.Clients(directory)
        self.readers = ledger.Clients(directory)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, _):
        self.writers.kill()
        self.readers.kill()
        self.cluster.__exit__(kind, value, _)

    def begin(self):
        """a cluster starts, and clients of it"""
        c = self.cluster
        if not self.no_mounts:
            c.limit_disk(c.node('gamma'), DISK)
        c.start(random.sample(cluster.NAMES, 3))
        c.wait_primary()
        ledger.set_up(ledger.open_storage(c.addresses, wait_timeout=60), WRITERS)
        old = old_zeo()
        for n in range(WRITERS):
            python, environ = old if old and n % 3 == 2 else (None, None)
            self.writers.start(
                'write', python, environ, addresses=c.addresses, pause=.01,
                padding=(10, 1000, 5000), blob_dir=os.path.join(
                    self.directory, 'blobs-%d' % n) if self.blobs else None)
        for node in c.nodes:
            self.readers.start('read', addresses=[node.read_address])
        self.readers.start('read', addresses=c.read_addresses)
        self.readers.wait_until_used(cluster.PATIENCE)
        self.all_go_on()

    def all_go_on(self, seconds=cluster.PATIENCE):
        """Every writer is acknowledged something that it begins from now on."""
        marks = self.writers.marks()
        began = time.monotonic()
        try:
            server.eventually(
                lambda: self.writers.all_since(marks) or self.writers.ended(), seconds)
            assert not self.writers.ended()
        except AssertionError:
            raise AssertionError('\n'.join(
                ['writers %s do not go on in %d s' % (
                    self.writers.without_since(marks), seconds)]
                + self.writers.ended())) from None
        print('   all go on after %.1f s' % (time.monotonic() - began), flush=True)
        self.cluster.alive()

    def nobody_goes_on(self):
        """Without a quorum nothing is acknowledged, once the lease is over."""
        time.sleep(2 * LEASE)
        at = time.monotonic()
        marks = self.writers.marks()
        time.sleep(2)
        count = self.writers.acknowledged_since(marks, at)
        assert not count, '%d transactions were acknowledged without a quorum' % count

    def complaints(self):
        """What must not have happened so far."""
        return (self.writers.ended() + self.readers.ended() + self.writers.errors()
                + self.readers.errors())

    def killed_primary(self):
        """kill -9 of the primary"""
        primary = self.cluster.wait_primary()
        self.cluster.kill(primary)
        self.all_go_on()
        self.cluster.restart(primary)
        self.cluster.settle()
        return self.complaints()

    def swapped(self):
        """M9: the primary is swapped, and no client is left in doubt"""
        c = self.cluster
        marks = self.writers.marks()
        for target in c.replicas():
            c.command(c.wait_primary(), 'swap', target.name)
            self.all_go_on()
            assert c.wait_primary() is target, '%s is not primary' % target.name
        doubts = [entry for path, mark in zip(self.writers.paths, marks)
                  for entry in ledger.read_ledger(path, mark) if entry['end'] == 'unknown']
        c.settle()
        return self.complaints() + ['in doubt: %s' % entry for entry in doubts]

    def drained(self):
        """nodes drain and are stopped, the primary among them, and no client is left in doubt"""
        c = self.cluster
        marks = self.writers.marks()
        primary = c.wait_primary()
        c.command(primary, 'drain')
        pages = [primary.asked(page)[0] for page in ('/ready', '/primary', '/replica', '/live')]
        assert pages == [503, 503, 503, 200], pages
        self.all_go_on()
        other = c.wait_primary(but=primary)
        assert primary.last_tid(read_only=True) is None, 'it serves readers'
        status = c.command(primary, 'status')
        assert '   draining' in status and 'readers open' not in status, status
        # Who is told to be primary all the same does not stay it.
        c.command(other, 'swap', primary.name)
        server.eventually(lambda: not primary.is_primary() and c.primary(), cluster.PATIENCE)
        self.all_go_on()
        c.command(primary, 'drain', '--undo')
        server.eventually(lambda: primary.last_tid(read_only=True), cluster.PATIENCE)
        doubts = [entry for path, mark in zip(self.writers.paths, marks)
                  for entry in ledger.read_ledger(path, mark) if entry['end'] == 'unknown']
        c.settle()
        return self.complaints() + ['in doubt: %s' % entry for entry in doubts]

    def killed_replica(self):
        """kill -9 of a replica"""
        replica = self.cluster.replicas()[0]
        self.cluster.kill(replica)
        self.all_go_on()
        self.cluster.restart(replica)
        self.cluster.settle()
        return self.complaints()

    def data_anew(self):
        """a replica whose data are damaged gets another one's, and who reads there goes on"""
        c = self.cluster
        replica, other = c.replicas()
        text = b'a blob to be damaged'
        db = ZODB.DB(ClientStorage(
            c.addresses, wait_timeout=60, blob_dir=os.path.join(self.directory, 'blobs-anew')))
        with contextlib.closing(db):
            persist(lambda: put(db, PersistentMapping(x='to be damaged ' + 'x' * 5000), 'x'),
                    FAILOVER)
            persist(lambda: put(db, ZODB.blob.Blob(text), 'blob'), FAILOVER)
        c.settle()
        # Nothing in front of a checkpoint is written any more.
        c.command(replica, 'verify')
        tid = flip(replica.data, b'to be damaged ')
        status, output = c.ctl(replica, 'verify', '--with', other.name)
        if status != 6 or 'transaction %s: its content differs' % tid not in output:
            return ['%s is not found to be damaged: %d: %s' % (replica.name, status, output)]
        blob = blob_of(replica, text)
        os.chmod(blob, 0o600)
        with open(blob, 'r+b') as f:
            f.write(text.upper())
        path = self.readers.paths[c.nodes.index(replica)]
        mark = ledger.end_of_lines(path)
        before = c.status(replica)['applied']
        began = time.monotonic()
        self.fetched(replica)
        print('   the data are others after %.1f s' % (time.monotonic() - began))
        for node in other, c.wait_primary():
            print('   ' + c.command(replica, 'verify', '--with', node.name).splitlines()[-1])
        self.all_go_on()
        # It was not away, and neither was who reads there.
        seen = ledger.read_ledger(path, mark)[1:]
        assert seen and all(entry['end'] == 'ok' for entry in seen), seen
        after = c.status(replica)['applied']
        assert after > before, (before, after)
        blob_of(replica, text)
        left = glob.glob(replica.data + '.copy*')
        assert not left, left
        c.settle()
        return self.complaints()

    def fetched(self, node):
        """It has the data of another one, when its packs have ended."""
        def is_done():
            status, output = self.cluster.ctl(node, 'fetch')
            print('   ' + output)
            assert status == 0 or 'packs: try again' in output, output
            return status == 0

        server.eventually(is_done, cluster.PATIENCE)

    def stopped_primary(self):
        """SIGSTOP of the primary"""
        c = self.cluster
        primary = c.wait_primary()
        c.stop(primary)
        began = time.monotonic()
        # A client that is connected there waits for an answer as long as there is a connection. A
        # new one does not.
        c.wait_primary(but=primary)
        ledger.persist_new(c.addresses, FAILOVER)
        print('   a new client goes on after %.1f s' % (time.monotonic() - began))
        time.sleep(max(0, began + PAUSE - time.monotonic()))
        c.cont(primary)
        self.all_go_on()
        c.settle()
        return self.complaints()

    def primary_apart(self):
        """the primary is parted from the others"""
        primary = self.cluster.wait_primary()
        self.cluster.partition([primary], self.cluster.replicas())
        server.eventually(lambda: not primary.is_primary(), cluster.PATIENCE)
        self.all_go_on()
        self.cluster.merge()
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def replica_apart(self):
        """a replica is parted from the others"""
        replica, other = self.cluster.replicas()
        self.cluster.partition([replica], [other, self.cluster.wait_primary()])
        self.all_go_on()
        # Who reads there goes on doing so.
        path = self.readers.paths[self.cluster.nodes.index(replica)]
        mark = ledger.end_of_lines(path)
        server.eventually(lambda: any(
            entry['end'] == 'ok' for entry in ledger.read_ledger(path, mark)), cluster.PATIENCE)
        self.cluster.merge()
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def all_apart(self):
        """all are parted from each other"""
        self.cluster.partition(*([node] for node in self.cluster.nodes))
        self.nobody_goes_on()
        self.cluster.merge()
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def killed_daemon(self):
        """groupd is killed, and starts again"""
        self.cluster.daemon.kill()
        self.nobody_goes_on()
        self.cluster.daemon.start()
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def full_disk(self):
        """the disk of a replica gets full, and that of the primary"""
        c = self.cluster
        gamma = c.node('gamma')
        if c.wait_primary() is gamma:
            c.kill(gamma)
            c.wait_primary(but=gamma)
            c.restart(gamma)
            c.settle()
        self.get_full(gamma)
        self.all_go_on_without(gamma)
        c.free_disk(gamma)
        self.all_go_on()
        c.settle()
        c.command(c.wait_primary(), 'swap', gamma.name)
        self.all_go_on()
        self.get_full(gamma)
        print('   %s is primary' % c.wait_primary(but=gamma).name)
        self.all_go_on_without(gamma)
        c.free_disk(gamma)
        self.all_go_on()
        c.settle()
        return self.complaints()

    def get_full(self, node):
        """Fill a node's disk; what it has in reserve is used up before it says so."""
        c = self.cluster
        c.fill_disk(node)
        with open(node.log, 'rb') as log:
            log.seek(0, os.SEEK_END)
            said = b''
            db = ledger.open_connection(ClientStorage(c.addresses, wait_timeout=60)).db()
            with contextlib.closing(db):
                for number in range(DISK >> 20):
                    persist(lambda: put(db, os.urandom(1 << 20), 'large'), FAILOVER)
                    said += log.read()
                    if any(text.encode() in said for text in NO_ROOM) or (
                            node.process.poll() is not None):
                        break
                else:
                    raise AssertionError('%s has room for %d MB more' % (node.name, DISK >> 20))
        print('   no room after %d MB' % (number + 1))

    def all_go_on_without(self, node):
        """As `all_go_on`; this one may have ended, in good order, and is started again."""
        with contextlib.suppress(AssertionError):
            self.all_go_on()
            return
        status = node.reap()
        assert status == 4, '%s ended with status %s' % (node.name, status)
        print('   %s ended with status 4' % node.name)
        self.all_go_on()
        self.cluster.free_disk(node)
        self.cluster.restart(node)

    def lost_disk(self):
        """a replica's disk is lost"""
        c = self.cluster
        replica = next(node for node in c.replicas() if node.name != 'gamma')
        c.kill(replica)
        c.wipe(replica)
        self.all_go_on()
        c.restart(replica)
        self.all_go_on()
        # All of it is copied, beside all that goes on.
        c.settle(300 if LONG else cluster.PATIENCE)
        return self.complaints()

    def power_off(self):
        """the power fails, and nodes start in another order"""
        c = self.cluster
        c.kill_all()
        c.daemon.kill()
        c.start(random.sample(cluster.NAMES, 3), pause=1)
        self.all_go_on()
        c.settle()
        return self.complaints()

    def packed(self):
        """a client packs, and all nodes do"""
        self.all_go_on()
        lens = {node.name: os.path.getsize(node.data) for node in self.cluster.nodes}
        self.pack()
        self.all_have_packed()
        for node in self.cluster.nodes:
            print('   %s: %d bytes, were %d' % (
                node.name, os.path.getsize(node.data), lens[node.name]))
        self.all_go_on()
        return self.complaints()

    def pack(self, wait=True):
        storage = ledger.open_storage(self.cluster.addresses, wait_timeout=60)
        with contextlib.closing(storage):
            storage.pack(time.time(), wait)

    def pack_in_doubt(self):
        """The same at a primary that may be killed before it can answer."""
        with contextlib.suppress(ClientDisconnected):
            self.pack(wait=False)

    def all_have_packed(self):
        """Wait for that, and keep a file as it was before."""
        c = self.cluster

        def is_done():
            c.alive()
            packs = [self.packs_of(node) for node in c.nodes]
            assert not any(pack.get('error') for of in packs for pack in of), packs
            entries = {pack['entry'] for of in packs for pack in of if pack['state'] == 'done'}
            return len(entries) == 1 and all(
                [pack['state'] for pack in of] == ['done'] for of in packs)

        server.eventually(is_done, cluster.PATIENCE)
        old = os.path.join(self.directory, 'before-%d.fs' % len(self.before))
        shutil.copy(c.nodes[-1].data + '.old', old)
        self.before.append(old)

    def wait_for_pack(self, node, done):
        """Wait until it packs, or has done another pack than these; whether it packs."""
        began = asked = time.monotonic()
        while not os.path.exists(node.data + '.pack'):
            now = time.monotonic()
            assert now < began + cluster.PATIENCE, '%s does not pack' % node.name
            if now > asked + 2:
                asked = now
                if any(pack['state'] == 'done' and pack['entry'] not in done
                       for pack in self.packs_of(node)):
                    return False
            time.sleep(.001)
        return True

    def packs_of(self, node):
        status = self.cluster.status(node)
        return status['packs'] if status else []

    def killed_in_pack(self):
        """kill -9 of the primary while it packs, and of others"""
        c = self.cluster
        # So that it takes a while.
        storage = ledger.open_storage(c.addresses, wait_timeout=60)
        with contextlib.closing(ZODB.DB(storage)) as db:
            put(db, [PersistentMapping(n=b'x' * BULK) for _ in range(20)], 'bulk')
        for victim in 'primary', 'replica', 'both':
            print('   ' + victim, flush=True)
            self.all_go_on()
            primary = c.wait_primary()
            nodes = {'primary': [primary], 'replica': c.replicas()[:1],
                     'both': [c.replicas()[0], primary]}[victim]
            done = [pack['entry'] for pack in self.packs_of(primary)]
            order = threading.Thread(target=self.pack_in_doubt)
            order.start()
            for node in nodes:
                # Each in its turn.
                is_packing = self.wait_for_pack(node, done)
                c.kill(node)
                print('   %s is killed %s' % (
                    node.name, 'as it packs' if is_packing else 'behind it'), flush=True)
                c.restart(node)
            order.join()
            self.all_go_on()
            self.all_have_packed()
        return self.complaints()

    def mend(self):
        """all is well again, after a step that has failed"""
        c = self.cluster
        if c.daemon.process is None:
            c.daemon.start()
        c.merge()
        for node in c.nodes:
            if os.path.exists(os.path.join(node.directory, 'filler')):
                c.free_disk(node)
            if node.is_stopped:
                c.cont(node)
            node.reap()
            if node.process is None:
                c.restart(node)
        self.all_go_on()

    def end(self):
        """nothing is lost, nothing is there twice, and all nodes have the same"""
        complaints = self.complaints()
        c = self.cluster
        self.writers.stop()
        if all(node.process for node in c.nodes):
            c.settle()
        self.readers.stop()
        complaints += self.complaints() + c.stop_all()
        ledgers = self.writers.ledgers()
        ends = ledger.ends(ledgers)
        print('   %s; readers looked %d times' % (
            ', '.join('%d %s' % (ends[end], end) for end in sorted(ends)),
            sum(map(len, self.readers.ledgers()))))
        for node in c.nodes:
            complaints += ['%s: %s' % (node.name, line)
                           for line in ledger.check_attempts(node.data, ledgers, self.before)
                           + ledger.check_sound(node.data) + stray_blobs(node)]
        return complaints + c.converged()

    FAULTS = ['packed', 'swapped', 'drained', 'killed_primary', 'killed_in_pack', 'killed_replica',
              'data_anew', 'stopped_primary', 'primary_apart',
              'replica_apart', 'all_apart', 'killed_daemon', 'full_disk', 'power_off',
              'lost_disk']


def blob_of(node, text):
    """The file of the blob that has this text."""
    for path in glob.glob(os.path.join(node.directory, 'blobs/0x*/**/*.blob'), recursive=True):
        with open(path, 'rb') as f:
            if f.read() == text:
                return path
    raise AssertionError('%s has no blob with %r' % (node.name, text))


def stray_blobs(node):
    """Complaints about blobs of revisions that are not in the data file any more."""
    with contextlib.closing(FileIterator(node.data)) as transactions:
        known = {(r.oid, t.tid) for t in transactions for r in t}
    complaints = []
    base = os.path.join(node.directory, 'blobs')
    for name in cluster.digests(base):
        *oid, tid = name.replace('0x', '').split(os.sep)
        oid, tid = bytes.fromhex(''.join(oid)), bytes.fromhex(tid[:-len('.blob')])
        if (oid, tid) not in known:
            complaints.append('a blob is left of %s %s' % (oid.hex(), tid.hex()))
    return complaints


def old_zeo():
    """(interpreter, environment) of a client of ZEO 5.4; None if there is no Python for it."""
    import matrix
    with contextlib.suppress(environment.Unavailable):
        path = matrix.packages((3, 8), '5.4')
        return matrix.FOUND[3, 8], dict(os.environ, PYTHONPATH=path)
    return None


def self_test(load):
    """Take away the newest acknowledged transaction, and do one twice: are there complaints?"""
    load.begin()
    time.sleep(1)
    complaints = load.end()
    if complaints:
        return complaints
    ledgers = load.writers.ledgers()
    newest = max(entry['tid'] for entries in ledgers for entry in entries if entry['end'] == 'ok')
    node = load.cluster.nodes[1]
    with contextlib.closing(FileIterator(node.data, start=p64(newest))) as transactions:
        pos = next(iter(transactions))._tpos
    os.truncate(node.data, pos)
    name = '%016x' % newest
    lost = ledger.check_attempts(node.data, ledgers)
    differs = load.cluster.converged()
    missed = []
    if not any(name in line for line in lost):
        missed.append('the loss of tid %s was not noticed' % name)
    if not any(name in line for line in differs):
        missed.append('that nodes differ in tid %s was not noticed' % name)
    # What was refused is there: an acknowledged attempt that the ledger has as refused.
    good = load.cluster.nodes[0].data
    entry = next(entry for entry in ledgers[0] if entry['end'] == 'ok')
    ledgers[0][ledgers[0].index(entry)] = dict(entry, end='conflict', text='doctored')
    if not any('conflict' in line for line in ledger.check_attempts(good, ledgers)):
        missed.append('a refused transaction that is there was not noticed')
    twice(good, entry)
    if not any('2 times' in line for line in ledger.check_attempts(good, load.writers.ledgers())):
        missed.append('a transaction that was done twice was not noticed')
    return missed


def twice(path, entry):
    """Add what was done in *entry* once more."""
    storage = FileStorage(path)
    found = next(iter(storage.iterator(p64(entry['tid']), p64(entry['tid']))))
    t = TransactionMetaData(description=found.description)
    storage.tpc_begin(t)
    for record in found:
        current = storage.load(record.oid)[1]
        storage.store(record.oid, current, record.data, '', t)
    storage.tpc_vote(t)
    storage.tpc_finish(t)
    storage.close()


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', action='append', default=[], metavar='STEP')
    parser.add_argument('--list', action='store_true', help='list the steps')
    parser.add_argument('--self-test', action='store_true')
    parser.add_argument('--no-blobs', action='store_true', help='write no blobs')
    parser.add_argument('--keep', action='store_true', help='keep what the nodes have')
    arguments = parser.parse_args()
    if arguments.list:
        for name in Rows.ALL:
            print('%-20s %s' % (name, getattr(Rows, name).__doc__))
        for name in Load.FAULTS:
            print('%-20s under load: %s' % (name, getattr(Load, name).__doc__))
        return
    no_mounts = cluster.own_mounts()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    directory = tempfile.mkdtemp(prefix='failover-')
    tally = ledger.Tally()
    try:
        if arguments.self_test:
            with Load(directory, no_mounts) as load:
                tally.step('self-test', lambda: self_test(load))
        else:
            run(directory, tally, arguments, no_mounts)
    finally:
        if arguments.keep:
            print('kept: %s' % directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    server.summary(tally.passed, tally.failed, tally.skipped)


def run(directory, tally, arguments, no_mounts):
    only = arguments.only
    r = Rows(directory)
    for name in Rows.ALL:
        if only and name not in only:
            continue
        tally.step(getattr(r, name).__doc__, getattr(r, name))
        r.close()
    faults = [name for name in Load.FAULTS if not only or name in only]
    if not faults:
        return
    if old_zeo() is None:
        tally.skip('clients of ZEO 5.4', 'no Python 3.8 here')
    with Load(directory, no_mounts, not arguments.no_blobs) as load:
        if not tally.step(load.begin.__doc__, load.begin):
            load.cluster.show_output()
            return
        for name in faults:
            step = getattr(load, name)
            if name == 'full_disk' and no_mounts:
                tally.skip(step.__doc__, 'no file system of its own can be mounted: ' + no_mounts)
            elif not tally.step('under load: ' + step.__doc__, step):
                load.cluster.show_output()
                if not tally.step(load.mend.__doc__, load.mend):
                    break
        if not tally.step(load.end.__doc__, load.end):
            load.cluster.show_output()


if __name__ == '__main__':
    main()
