"""zeobench against stock runzeo, and what it leaves behind, opened by stock ZODB.

That it runs against our own server, and notices servers that are wrong, is tested in tests/bench.rs.
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import ZODB
import ZODB.FileStorage
from ZODB.utils import maxtid
from ZODB.utils import p64
import ZEO

import server

ZEOBENCH = os.path.join(os.path.dirname(server.RELEASE), 'zeobench')
PEERS = os.path.join(server.PROJECT, 'tools', 'bench', 'peers')

OBJECTS = 2500          # so that there is more than one node of a thousand

WORKLOADS = [
    ('loads', 'loads_per_second'),
    ('loads --connections 20 --depth 1 --distribution zipf', 'loads_p99_ms'),
    ('commits --connections 3 --batch 10', 'commits_per_second'),
    ('mixed --connections 4 --writes 20', 'commits_p50_ms'),
    ('conflicts --connections 4 --hot 2', 'commits_count'),
    ('fanout --connections 11', 'fanout_p50_ms'),
    ('connect --count 50 --connections 10', 'connects_p50_ms'),
    ('large --size 500000', 'stores_mb_per_second'),
]


class Tests(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def serve(self, command=None, **options):
        directory = tempfile.mkdtemp(dir=self.directory)
        s = server.Server(directory, command=command, **options).start()
        self.addCleanup(s.kill)
        return s

    def zeobench(self, line, s, *more):
        command = [ZEOBENCH, *line.split(), '%s:%d' % s.address, '--json', '--no-progress',
                   '--timeout', '60', *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ''), line)
        (result,) = json.loads(done.stdout)['servers']
        return result['median']

    def all_workloads(self, s):
        self.zeobench('prepare', s, '--objects', str(OBJECTS), '--size', '200,1024')
        for line, figure in WORKLOADS:
            with self.subTest(line):
                median = self.zeobench(line, s, '--operations', '20', '--warmup', '.1',
                                       '--pid', str(s.process.pid))
                self.assertGreater(median[figure], 0)
                self.assertGreater(median['server_resident_mb'], 1)

    def test_all_workloads_on_runzeo_with_pickle(self):
        self.all_workloads(self.serve(server.REFERENCE))

    def test_all_workloads_on_runzeo_with_msgpack(self):
        self.all_workloads(self.serve(server.REFERENCE, msgpack=True))

    def test_conflicts_on_a_server_that_tries_to_resolve_them(self):
        s = self.serve(server.REFERENCE, **{'client-conflict-resolution': 'false'})
        self.zeobench('prepare', s, '--objects', '10')
        median = self.zeobench('conflicts --connections 8 --hot 1', s, '--operations', '50')
        self.assertGreater(median['conflicts'], 0)

    def test_zodb_opens_what_is_left(self):
        s = self.serve()
        # A root that is in use stays as it is.
        db = ZEO.DB(s.address)
        with db.transaction() as connection:
            connection.root()['mine'] = {'a': 1}
        db.close()
        self.all_workloads(s)
        db = ZEO.DB(s.address)
        with db.transaction() as connection:
            self.check_objects(connection)
            connection.root()['more'] = 2
        # A root that Python has written since is found by zeobench.
        self.zeobench('mixed', s, '--operations', '500')
        # Nothing that was prepared is garbage.
        db.pack()
        db.close()
        self.zeobench('mixed', s, '--operations', '500')
        s.stop()
        path = os.path.join(s.directory, 'Data.fs')
        self.run_tool('fstest', path)
        self.assertEqual(self.run_tool('fsrefs', path), '')
        db = ZODB.DB(path)
        with db.transaction() as connection:
            self.check_objects(connection)
        db.close()

    def check_objects(self, connection):
        root = connection.root()
        self.assertEqual(root['mine'], {'a': 1})
        catalogue = root['zeobench']
        self.assertEqual(len(catalogue['oids']), 8 * len(catalogue['refs']))
        objects = [o for node in catalogue['refs'] for o in node['refs']]
        self.assertEqual(len(objects), OBJECTS)
        oids = b''.join(node['oids'] for node in catalogue['refs'])
        self.assertEqual(oids, b''.join(o._p_oid for o in objects))
        for o in objects[::50]:
            self.assertEqual(list(o), ['zeobench'])
            self.assertEqual(o['zeobench'][:8], o._p_oid)
        data, _, _ = connection.db().storage.loadBefore(p64(0), maxtid)
        self.assertIn(b'zeobench', data)

    def run_tool(self, name, path):
        done = subprocess.run([sys.executable, '-m', 'ZODB.scripts.' + name, path],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_a_root_of_runzeo_is_kept(self):
        s = self.serve(server.REFERENCE)
        db = ZEO.DB(s.address)
        with db.transaction() as connection:
            connection.root()['mine'] = {'a': 1}
        db.close()
        self.zeobench('prepare', s, '--objects', str(OBJECTS))
        db = ZEO.DB(s.address)
        with db.transaction() as connection:
            self.check_objects(connection)
        db.close()

    def test_peers_prints_its_table(self):
        done = subprocess.run(
            [sys.executable, PEERS, '--quick', '--seconds', '.1', '--objects', '500',
             '--only', 'loads', '--only', 'memory', '--only', 'start', '--only', 'limits',
             '--directory', self.directory],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [line for line in done.stdout.splitlines() if line.startswith('|')]
        self.assertEqual(len(lines), 2 + 2 + 3 + 3 + 3, done.stdout)
        for line in lines:
            self.assertEqual(line.count('|'), 5, line)
        self.assertEqual(glob.glob(os.path.join(self.directory, 'peers-*')), [])


if __name__ == '__main__':
    server.main()
