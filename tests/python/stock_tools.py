"""The tools that come with ZODB and ZEO, and those that sites use beside them.

What a tool says of the server under test, or of a file that it has written and still serves, is
compared with what it says of the Python server, or of a file that ZODB has written.
"""
import contextlib
import filecmp
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

import transaction
import ZODB
import ZODB.blob
import ZODB.POSException
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from ZEO.ClientStorage import ClientStorage
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import newTid
from ZODB.utils import p64

import server
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))

import environment  # noqa: E402 (in the directory above)

BIN = os.path.dirname(sys.executable)
REQUIREMENTS = os.path.join(server.PROJECT, 'tests', 'python', 'requirements-tools.txt')
DAY = 86400
WITH_BLOBS = '<filestorage 1>\n  path Data.fs\n  blob-dir blobs\n</filestorage>\n'


class Lost(Persistent):
    """Of a module that the tools cannot import."""


Lost.__module__ = 'lost_module'


def make_history(path, blob_dir=None, kind='whole'):
    """Ten days of a database, by stock ZODB; all that a record or transaction can be is in it.

    A `damaged` one lacks an object that another one refers to; stock's pack does not get over
    that. In a `sound` one is no object whose creation was undone or that was deleted; what walks
    through all current records (`record_iternext`) does not get over those. In one transaction of
    that with `twice` is an object written twice, as ZODB does when it undoes two changes at once;
    this one has extensions of transactions, too, which may be pickled in several ways.
    """
    now = time.time()
    step = iter(range(1, 10000))
    clock = mock.patch('time.time', lambda: now - 10 * DAY + next(step) * 10000.0)
    lost = types.ModuleType('lost_module')
    lost.Lost = Lost
    with clock, mock.patch.dict(sys.modules, lost_module=lost):
        db = ZODB.DB(FileStorage(path, blob_dir=blob_dir))
        with contextlib.closing(db):
            fill(db, blob_dir, kind)
    os.unlink(path + '.index')


def fill(db, blob_dir, kind):
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()

    def commit(user, note, **extension):
        t = manager.get()
        t.user, _ = user, t.note(note)
        if kind == 'twice':
            for key, value in extension.items():
                t.setExtendedInfo(key, value)
        manager.commit()

    def undo(*notes):
        entries = db.undoInfo(0, 10000)
        db.undoMultiple([next(e['id'] for e in entries if e['description'] == note)
                         for note in notes], manager.get())
        commit('undoer', 'undo of ' + ' and '.join(notes))
        manager.begin()

    root['tree'] = OOBTree({'key %d' % i: PersistentMapping(i=i) for i in range(60)})
    root['a'], root['b'] = PersistentMapping(n=0), PersistentMapping(n=0)
    root['large'] = PersistentMapping(data='x' * 300000)
    commit('', '')
    root['weak'] = PersistentMapping(ref=WeakRef(root['a']))
    root['cycle'] = PersistentMapping()
    root['cycle']['back'] = PersistentMapping(to=root['cycle'])
    root['lost'] = Lost()
    commit('b\u00f6b', 'w\u00e4ak', key='value', number=7)
    for n in range(1, 12):
        root['a']['n'] = root['b']['m'] = n
        root['tree']['key %d' % n]['i'] = -n
        commit('editor', 'a is %d' % n, n=n)
    undo('a is 11')
    undo('undo of a is 11')
    undo(*['a is 11', 'a is 10'][:2 if kind == 'twice' else 1])
    root['undone'] = PersistentMapping(x=1)
    commit('creator', 'created')
    root['undone']['x'] = 2
    commit('creator', 'changed')
    undo('changed')
    if kind != 'sound':
        undo('created')
    unlinked = [root['cycle']._p_oid, root['cycle']['back']._p_oid]
    del root['cycle']
    root['garbage'] = PersistentMapping(data='y' * 50000)
    commit('editor', 'unlinked')
    del root['garbage']
    commit('editor', 'unlinked, too')
    if blob_dir:
        root['blob'] = ZODB.blob.Blob(b'first')
        commit('editor', 'blob')
        with root['blob'].open('w') as f:
            f.write(b'second' * 100000)
        commit('editor', 'blob again')
        undo('blob again')
    if kind == 'sound':
        return
    # External garbage collection, which may be wrong.
    storage, t = db.storage, TransactionMetaData()
    storage.tpc_begin(t)
    for oid in [root['b']._p_oid] if kind == 'damaged' else unlinked:
        storage.deleteObject(oid, storage.getTid(oid), t)
    storage.tpc_vote(t)
    storage.tpc_finish(t)


def transactions(storage):
    """All that an iterator tells."""
    return [(t.tid, t.status, t.user, t.description, dict(t.extension),
             [(r.oid, r.tid, r.data, r.data_txn) for r in t]) for t in storage.iterator()]


def last_ones(found):
    """The same transactions, with one record for each object."""
    return [entry[:-1] + (sorted({record[0]: record for record in entry[-1]}.values()),)
            for entry in found]


class Case(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix='sb')
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.stock = cls.path('stock.fs')
        make_history(cls.stock)

    @classmethod
    def path(cls, *names):
        return os.path.join(cls.directory, *names)

    def serve(self, name, file=None, command=None, blobs=None, **options):
        """A server in a directory of its own, with a copy of a file, and of blobs, or none."""
        directory = tempfile.mkdtemp(prefix=name, dir=self.directory)
        if file:
            shutil.copy(file, os.path.join(directory, 'Data.fs'))
        if blobs:
            shutil.copytree(blobs, os.path.join(directory, 'blobs'))
        s = server.Server(directory, command=command, **options)
        self.addCleanup(s.stop)
        s.file = os.path.join(directory, 'Data.fs')
        return s.start()

    def both(self, *arguments, **options):
        """The server under test, and the Python server."""
        return (self.serve('ours', *arguments, **options),
                self.serve('reference', *arguments, command=server.REFERENCE, **options))

    def client(self, server_, **options):
        storage = ClientStorage(server_.address, wait_timeout=30, **options)
        self.addCleanup(storage.close)
        return storage

    def same_files(self, one, other):
        if not filecmp.cmp(one, other, shallow=False):
            with contextlib.closing(FileStorage(one, read_only=True)) as a, \
                    contextlib.closing(FileStorage(other, read_only=True)) as b:
                self.assertEqual(transactions(a), transactions(b))
            self.fail('the same transactions, but not the same bytes: %s %s' % (one, other))


def run(words, status=0, hide=()):
    """What a tool prints, without what it has to differ in.

    A status of None is for tools that fail on ZODB's own files, too.
    """
    if os.path.sep not in words[0]:
        words = [os.path.join(BIN, words[0]), *words[1:]]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=120)
    output = done.stdout.decode('utf-8', 'replace')
    for text in hide:
        output = output.replace(str(text), '?')
    if status is None:
        return '%s\nstatus %d' % (output, done.returncode)
    if done.returncode != status:
        raise AssertionError('%s: status %d:\n%s' % (' '.join(words), done.returncode, output))
    return output


def module(name):
    return [sys.executable, '-m', name]


class CopyTests(Case):
    """Transactions with their ids, from a file into the server and out of it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wanted = cls.stock_copy(cls.stock)
        cls.twice = cls.path('twice.fs')
        make_history(cls.twice, kind='twice')

    @classmethod
    def stock_copy(cls, path):
        """What stock makes of a copy: it keeps back pointers where it can tell that they are."""
        with contextlib.closing(FileStorage(path + '.wanted')) as copy, \
                contextlib.closing(FileStorage(path, read_only=True)) as source:
            copy.copyTransactionsFrom(source)
        return path + '.wanted'

    def test_into_the_server(self):
        s = self.serve('into')
        with contextlib.closing(FileStorage(self.stock, read_only=True)) as source:
            storage = self.client(s)
            storage.copyTransactionsFrom(source)
            self.assertEqual(transactions(storage), transactions(source))
        s.stop()
        self.same_files(s.file, self.wanted)

    def test_of_two_records_of_an_object_in_a_transaction_the_last_one_counts(self):
        """The Python server keeps the other one, too, where nobody can load it."""
        s = self.serve('twice')
        with contextlib.closing(FileStorage(self.twice, read_only=True)) as source:
            storage = self.client(s)
            storage.copyTransactionsFrom(source)
            ours, wanted = transactions(storage), transactions(source)
        self.assertNotEqual(wanted, last_ones(wanted))
        self.assertEqual(last_ones(ours), last_ones(wanted))

    def test_out_of_the_server(self):
        for stock, name in (self.stock, 'out.fs'), (self.twice, 'out-twice.fs'):
            s = self.serve('out', stock)
            with contextlib.closing(FileStorage(self.path(name))) as copy:
                copy.copyTransactionsFrom(self.client(s))
        self.same_files(self.path('out.fs'), self.wanted)
        self.same_files(self.path('out-twice.fs'), self.stock_copy(self.twice))

    def test_from_server_to_server(self):
        ours, reference = self.both()
        filled = self.serve('filled', self.stock)
        for s in ours, reference:
            self.client(s).copyTransactionsFrom(self.client(filled))
            s.stop()
            self.same_files(s.file, self.wanted)

    def test_out_of_the_server_with_blobs(self):
        """The other way is impossible: ZEO's client has no `restoreBlob`."""
        stock, blobs = self.path('blobs.fs'), self.path('blobs')
        make_history(stock, blobs)
        s = self.serve('blobs', stock, storages=WITH_BLOBS, blobs=blobs)
        for name, options in ('streamed', {'blob_dir': self.path('cache')}), (
                'shared', {'blob_dir': os.path.join(s.directory, 'blobs'),
                           'shared_blob_dir': True}):
            with contextlib.closing(FileStorage(
                    self.path(name + '.fs'), blob_dir=self.path(name))) as copy:
                ZODB.blob.copyTransactionsFromTo(self.client(s, **options), copy)
            self.assertEqual(tree(self.path(name)), tree(blobs))
        self.same_files(self.path('streamed.fs'), self.path('shared.fs'))
        self.assertEqual(len([name for name in tree(blobs) if name.endswith('.blob')]), 3)

    def test_zodbconvert(self):
        s = self.serve('convert')
        first = self.convert(FILE % ('source', self.stock), ZEO % (('destination',) + s.address))
        again = self.convert(ZEO % (('source',) + s.address),
                             FILE % ('destination', self.path('converted.fs')))
        self.same_files(self.path('converted.fs'), self.wanted)
        # What has come since then.
        db = ZODB.DB(self.client(s))
        with db.transaction() as connection:
            connection.root()['late'] = 1
        self.convert(ZEO % (('source',) + s.address),
                     FILE % ('destination', self.path('converted.fs')), '--incremental')
        db.close()
        s.stop()
        self.same_files(self.path('converted.fs'), s.file)
        # And what it says where both are files.
        files = self.convert(FILE % ('source', self.stock),
                             FILE % ('destination', self.path('plain.fs')))
        self.assertEqual(self.told(files), self.told(first))
        self.assertEqual(self.told(files), self.told(again))

    def convert(self, source, destination, *options):
        try:
            python = environment.venv(REQUIREMENTS)
        except environment.Unavailable as reason:
            self.skipTest('no RelStorage: %s' % reason)
        path = self.path('convert.conf')
        with open(path, 'w') as f:
            f.write(source + destination)
        return run([os.path.join(os.path.dirname(python), 'zodbconvert'), *options, path])

    @staticmethod
    def told(output):
        """The lines of its own in its log, without times."""
        return re.findall(r'\[zodbconvert\] .*', output)


FILE = '<filestorage %s>\n  path %s\n</filestorage>\n'
ZEO = '<zeoclient %s>\n  server %s:%d\n</zeoclient>\n'


def tree(directory):
    """{name: content} of the files in it."""
    found = {}
    for base, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(base, name)
            with open(path, 'rb') as f:
                found[os.path.relpath(path, directory)] = f.read()
    return found


class InspectionTests(unittest.TestCase):
    """Tools that read a file, while the server that has written it goes on.

    There is a file of each kind of history; `wanted` is what stock makes of it.
    """

    KINDS = 'whole', 'sound', 'damaged'

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix='sb')
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.server = server.Server(cls.directory, storages=''.join(
            '<filestorage %s>\n  path %s.fs\n</filestorage>\n' % (kind, kind)
            for kind in cls.KINDS))
        cls.addClassCleanup(cls.server.stop)
        cls.server.start()
        for kind in cls.KINDS:
            stock = os.path.join(cls.directory, kind + '.stock')
            make_history(stock, kind=kind)
            with contextlib.closing(FileStorage(stock, read_only=True)) as source:
                with contextlib.closing(FileStorage(cls.files(kind)[1])) as copy:
                    copy.copyTransactionsFrom(source)
                with contextlib.closing(
                        ClientStorage(cls.server.address, storage=kind)) as storage:
                    storage.copyTransactionsFrom(source)

    @classmethod
    def files(cls, kind):
        return [os.path.join(cls.directory, kind + end) for end in ('.fs', '.wanted')]

    def compare(self, *words, told='.', status=0, kinds=KINDS, more=()):
        """Run a tool on both files of some kinds; its output has to have `told` in it."""
        for kind in kinds:
            outputs = [run([*words, path, *more], status, hide=[path])
                       for path in self.files(kind)]
            # The index of a file that is in use may be old, or not be.
            ours, wanted = (re.sub(r'^.*Ignoring index for .*\n', '', output, flags=re.M)
                            for output in outputs)
            self.assertEqual(ours, wanted)
            self.assertRegex(ours, told)

    def test_fsdump(self):
        self.compare('fsdump', told=r'bp=[0-9a-f]{16}')

    def test_fstail(self):
        self.compare('fstail', '-n', '100', told=r"description=b'a is 3'")

    def test_fsrefs(self):
        self.compare('fsrefs', told='^$', kinds=['whole', 'sound'])
        self.compare('fsrefs', told='refers to invalid object', kinds=['damaged'])

    def test_fsoids(self):
        self.compare('fsoids', told='revision', more=['0', '1', '0x3'])

    def test_fstest(self):
        self.compare(*module('ZODB.scripts.fstest'), '-vv', told=r'transaction tid .* #20')

    def test_fsstats(self):
        for kind in self.KINDS:
            outputs = []
            for path in self.files(kind):
                with open(path + '.dump', 'w') as f:
                    f.write(run(['fsdump', path]))
                # On Python 3 it fails when it draws a histogram of more than 40.
                outputs.append(run([*module('ZODB.scripts.fsstats'), path + '.dump'], None,
                                   hide=[path]))
            self.assertEqual(*outputs)
            self.assertIn('Summary: ', outputs[0])

    def test_analyze_space_and_netspace(self):
        self.compare(*module('ZODB.scripts.analyze'), told='OOB', kinds=['sound'])
        self.compare(*module('ZODB.scripts.space'), status=None, kinds=['sound'])
        self.compare(*module('ZODB.scripts.netspace'), status=None, kinds=['sound'])

    def test_zodbverify(self):
        try:
            python = environment.venv(REQUIREMENTS)
        except environment.Unavailable as reason:
            self.skipTest('no zodbverify: %s' % reason)
        verify = os.path.join(os.path.dirname(python), 'zodbverify')
        self.compare(verify, '-f', told="No module named 'lost_module'", kinds=['sound'])
        self.compare(verify, '-f', told='POSKeyError', status=1, kinds=['whole', 'damaged'])


class Writer(threading.Thread):
    """A client that commits until it is stopped."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.db = ZODB.DB(ClientStorage(address, wait_timeout=30))
        self.stopping = threading.Event()
        self.count = 0
        self.error = None

    def run(self):
        try:
            connection = self.db.open(transaction.TransactionManager())
            connection.root()['writer'] = mapping = PersistentMapping()
            while not self.stopping.wait(.005):
                mapping['n'] = self.count
                mapping['data'] = 'x' * (self.count % 7 * 1000)
                connection.transaction_manager.commit()
                self.count += 1
        except Exception as error:
            self.error = error

    def more(self, count=20):
        wanted = self.count + count
        eventually(lambda: self.error or self.count >= wanted)

    def finish(self):
        self.stopping.set()
        self.join(30)
        self.db.close()
        if self.error:
            raise self.error


class RepozoTests(Case):

    last = 0

    def repozo(self, *words, hide=()):
        """Its files are in order if it has a second for each."""
        eventually(lambda: int(time.time()) > self.last)
        output = run(['repozo', *words], hide=hide)
        self.last = int(time.time())
        return output

    def backup(self, s, repository, *words):
        output = self.repozo('-B', '-v', *words, '-r', repository, '-f', s.file)
        return re.sub(r'\S*\d{4}-\d\d(-\d\d)+\S*', '?', output).replace(repository, '?').replace(
            s.file, '?')

    def test_backups_while_clients_commit(self):
        s = self.serve('busy', self.stock)
        repository = self.path('busy-backup')
        os.mkdir(repository)
        writer = Writer(s.address)
        writer.start()
        try:
            writer.more()
            self.assertIn('full backup', self.backup(s, repository, '-F'))
            for _ in range(3):
                writer.more()
                output = self.backup(s, repository, '-Q')
                self.assertIn('writing incremental', output)
                self.repozo('-V', '-r', repository)
        finally:
            writer.finish()
        counted = self.recovered(s, repository)
        self.assertGreaterEqual(counted, 60)
        self.assertIn('writing incremental', self.backup(s, repository, '-z'))
        self.assertEqual(self.recovered(s, repository), writer.count - 1)
        self.assertNotIn('writing', self.backup(s, repository))

    def recovered(self, s, repository):
        """Recover, compare with the file, and return what the last commit in it wrote."""
        target = self.path('recovered.fs')
        for path in target, target + '.index':
            if os.path.exists(path):
                os.unlink(path)
        self.repozo('-R', '-v', '-w', '-r', repository, '-o', target)
        with open(target, 'rb') as a, open(s.file, 'rb') as b:
            data = a.read()
            self.assertEqual(data, b.read(len(data)))
        # The index that comes with the backup is believed, so it should be right.
        with contextlib.closing(FileStorage(target, read_only=True)) as storage:
            index = dict(storage._index.items())
        os.unlink(target + '.index')
        db = ZODB.DB(FileStorage(target))
        with contextlib.closing(db):
            self.assertEqual(index, dict(db.storage._index.items()))
            with db.transaction() as connection:
                return connection.root()['writer']['n']

    def test_it_says_and_writes_the_same_as_of_the_Python_server(self):
        told = []
        repositories = []
        for s in self.both(self.stock):
            repository = os.path.join(s.directory, 'backup')
            os.mkdir(repository)
            repositories.append(repository)
            said = [self.backup(s, repository, '-F')]
            self.commit_at(s, time.time() - 100)
            said.append(self.backup(s, repository))
            said.append(self.backup(s, repository))
            self.commit_at(s, time.time() - 50)
            said.append(self.backup(s, repository, '-Q', '-z'))
            said.append(self.repozo('-V', '-v', '-r', repository, hide=[repository]))
            run(['zeopack', '%s:%d' % s.address])
            said.append(self.backup(s, repository, '-Q'))
            told.append([re.sub(r'[0-9a-f]{32}', 'md5', re.sub(
                r'\S*\d{4}-\d\d(-\d\d)+\S*', '?', text)) for text in said])
        self.assertEqual(*told)
        sizes = [[os.path.getsize(os.path.join(r, name)) for name in sorted(os.listdir(r))
                  if name.endswith('fs')] for r in repositories]
        self.assertEqual(*sizes)

    def commit_at(self, s, when):
        """A transaction of that time, so that it is the same on each server."""
        with mock.patch('time.time', lambda: when):
            db = ZODB.DB(self.client(s))
            t = TransactionMetaData()
            tid = newTid(None)
        storage = db.storage
        data, _, _ = storage.loadBefore(p64(0), p64((1 << 63) - 1))
        storage.tpc_begin(t, tid)
        storage.restore(p64(0), tid, data, '', None, t)
        storage.tpc_vote(t)
        storage.tpc_finish(t)
        db.close()


class NagiosTests(Case):

    TWO = ('<filestorage 1>\n  path Data.fs\n</filestorage>\n'
           '<filestorage second>\n  path second.fs\n</filestorage>\n')

    def test_it_says_the_same_as_of_the_Python_server(self):
        told = []
        for s in self.both(self.stock, storages=self.TWO):
            said = []

            def nagios(*options, status=0):
                output = run(['zeo-nagios', *options, '%s:%d' % s.address], status)
                said.append(output)

            nagios(status=1)                        # the second one is empty
            self.client(s, storage='second').close()
            db = ZODB.DB(self.client(s))
            db2 = ZODB.DB(self.client(s, storage='second'))
            nagios()
            eventually(lambda: self.connections(s) == [1, 1])
            nagios('-m')
            one, two = (db.open(transaction.TransactionManager()) for _ in range(2))
            for connection in one, two:
                connection.root()['a'] = 1
            one.transaction_manager.commit()
            with contextlib.suppress(ZODB.POSException.ConflictError):
                two.transaction_manager.commit()
            two.transaction_manager.abort()
            t = TransactionMetaData()
            db.storage.tpc_begin(t)
            db.storage.sync() if hasattr(db.storage, 'sync') else None
            db.storage.ping()
            nagios('-m')
            status = os.path.join(s.directory, 'status')
            for unit in 'seconds', 'days':
                nagios('-m', '-s', status, '-u', unit)
            self.diffs(said[-1])
            db.storage.tpc_abort(t)
            db.close()
            db2.close()
            # Rates depend on how much time went by.
            told.append(said[:-1] + [re.sub(r'=.*', '', said[-1])])
        self.assertEqual(*told)

    def connections(self, s):
        output = run(['zeo-nagios', '-m', '%s:%d' % s.address])
        return [int(n) for n in re.findall(r'connections=(\d+)', output)]

    def diffs(self, output):
        for name in 'aborts', 'commits', 'conflicts', 'conflicts_resolved', 'loads', 'stores':
            self.assertRegex(output, r'\b%s=[\d.]+' % name)

    def test_an_empty_storage(self):
        outputs = [run(['zeo-nagios', '-m', '%s:%d' % s.address], 1) for s in self.both()]
        self.assertEqual(*outputs)
        self.assertIn("Empty storage '1'", outputs[0])


class ZeopackTests(Case):

    def packed(self, options, storages=server.STORAGE, address=None, status=0):
        """Pack a copy on each server; the same has to be said, and to be left."""
        told = []
        files = []
        for s in self.both(self.stock, storages=storages):
            target = '%s:%d' % s.address + (address or '')
            told.append(run(['zeopack', *options, target], status,
                            hide=[target, s.address[1]]))
            # A pack at the very end of the file leaves nothing to look for.
            self.assertEqual(os.path.exists(s.file + '.old'),
                             not filecmp.cmp(s.file, self.stock, shallow=False))
            if os.path.exists(s.file + '.old'):
                self.assertTrue(filecmp.cmp(s.file + '.old', self.stock, shallow=False))
            s.stop()
            files.append(s.file)
        self.same_files(*files)
        tracebacks = [re.sub(r'File ".*', 'File', text) for text in told]
        self.assertEqual(*tracebacks)
        return files[0], told[0]

    def smaller(self, file):
        return os.path.getsize(self.stock) - os.path.getsize(file)

    def test_to_now(self):
        file, said = self.packed([])
        self.assertEqual(said, '')
        self.assertGreater(self.smaller(file), 1000)

    def test_to_some_days_ago(self):
        file, _ = self.packed(['-d', '9'])
        everything, _ = self.packed(['-d', '0'])
        self.assertTrue(0 <= self.smaller(file) < self.smaller(everything))

    def test_to_before_the_first_transaction(self):
        file, _ = self.packed(['-d', '30'])
        self.assertEqual(self.smaller(file), 0)

    def test_to_a_time_of_the_day(self):
        self.packed(['-d', '5', '-t', '12:30'])

    def test_a_storage_with_a_name(self):
        self.packed([], '<filestorage main>\n  path Data.fs\n</filestorage>\n', ':main')

    def test_a_storage_without_garbage_collection(self):
        file, _ = self.packed(
            [], '<filestorage 1>\n  path Data.fs\n  pack-gc false\n</filestorage>\n')
        collected, _ = self.packed([])
        self.assertLess(os.path.getsize(collected), os.path.getsize(file))

    def test_a_Unix_socket(self):
        s = self.serve('unix', self.stock, address=os.path.join(self.directory, 'socket'))
        os.chmod(s.file, 0o600)
        self.assertEqual(run(['zeopack', '-u', s.address]), '')
        self.assertGreater(self.smaller(s.file), 1000)
        if server.command() != server.REFERENCE:    # which leaves it to the umask
            self.assertEqual(stat.S_IMODE(os.stat(s.file).st_mode), 0o600)


class BenchmarkTests(Case):

    KINDS = ['add', 'store', 'update', 'cold', 'warm', 'conflicts', 'tpc']

    def test_zodbshootout(self):
        try:
            python = environment.venv(REQUIREMENTS)
        except environment.Unavailable as reason:
            self.skipTest('no zodbshootout: %s' % reason)
        names = []
        for s in self.both(storages=WITH_BLOBS):
            names.append(self.shoot(python, s))
        self.assertEqual(*names)
        self.assertGreaterEqual(len(names[0]), len(self.KINDS))

    def shoot(self, python, s, *options):
        conf = os.path.join(s.directory, 'shootout.conf')
        with open(conf, 'w') as f:
            f.write('%%import ZEO\n<zodb server>\n  <clientstorage>\n    server %s:%d\n'
                    '  </clientstorage>\n</zodb>\n' % s.address)
        output = run([os.path.join(os.path.dirname(python), 'zodbshootout'), '--quiet',
                      '-p', '1', '-n', '1', '-w', '0', '-l', '1', '-c', '2', '--threads',
                      'shared', '--object-counts', '20', '--include-mapping', 'no',
                      '-o', os.path.join(s.directory, 'results'), *options, conf, *self.KINDS])
        self.assertNotIn('Traceback', output)
        return [line.rpartition(': ')[0] for line in output.splitlines() if 'server: ' in line]


if __name__ == '__main__':
    server.main()
