"""Clients of several Pythons and versions of ZEO, each alone and all at the same time.

Those that are not installed here are skipped.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import ZODB
import ZODB.FileStorage
from ZEO.ClientStorage import ClientStorage

import server

sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))

import environment  # noqa: E402 (in the directory above)
import smoke  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ZEO_6 = os.path.join(server.PROJECT, 'tests', 'conformance', 'requirements.txt')
PYTHONS = {
    (2, 7): os.path.join(HERE, 'requirements-2.7.txt'),
    (3, 8): os.path.join(HERE, 'requirements-3.8.txt'),
    (3, 11): ZEO_6,
    (3, 13): ZEO_6,
}
FOUND = environment.interpreters()


class Case(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def serve(self, msgpack):
        s = server.Server(self.directory, msgpack=msgpack)
        self.addCleanup(s.stop)
        return s.start()

    def smoke(self, server_, version, turn=''):
        """Start the script under a Python; it uses objects named after that."""
        return self.script(version, 'smoke.py', str(server_.address[1]),
                           'python %d.%d' % version + turn)

    def script(self, version, name, *arguments):
        python = FOUND[version]
        environ = dict(os.environ, PYTHONPATH=environment.site(PYTHONS[version], python))
        return subprocess.Popen(
            [python, os.path.join(HERE, name)] + list(arguments),
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def need(self, version):
        if version not in FOUND:
            self.skipTest('no Python %d.%d here' % version)
        try:
            environment.site(PYTHONS[version], FOUND[version])
        except environment.Unavailable as reason:
            self.skipTest(str(reason))

    def finish(self, process):
        try:
            out, _ = process.communicate(timeout=180)
        finally:
            process.kill()
        self.assertEqual(process.returncode, 0, out.decode('utf-8', 'replace'))

    def counted(self):
        fs = ZODB.FileStorage.FileStorage(os.path.join(self.directory, 'Data.fs'), read_only=True)
        db = ZODB.DB(fs)
        with db.transaction() as connection:
            n = connection.root()['counter']()
        db.close()
        return n


class AloneTests(Case):
    """One test for each Python and encoding, added below."""

    def alone(self, version, msgpack):
        self.need(version)
        s = self.serve(msgpack)
        self.finish(self.smoke(s, version))
        s.stop()
        self.assertEqual(self.counted(), smoke.MANY)


class TurnsTests(Case):
    """ZODB of each Python and this server have the file in turns; one test each, added below."""

    def turns(self, version):
        self.need(version)
        path = os.path.join(self.directory, 'Data.fs')
        self.finish(self.script(version, 'file_turn.py', path, '0'))
        with open(path, 'rb') as f:
            magic = f.read(4)
        for turn in '1', '2':
            s = self.serve(False)
            self.finish(self.smoke(s, version, ' turn ' + turn))
            s.stop()
            self.finish(self.script(version, 'file_turn.py', path, turn))
        with open(path, 'rb') as f:
            self.assertEqual(f.read(4), magic)


class TogetherTests(Case):

    def together(self, msgpack):
        available = []
        for version in PYTHONS:
            try:
                environment.site(PYTHONS[version], FOUND[version])
                available.append(version)
            except (KeyError, environment.Unavailable):
                continue
        if len(available) < 2:
            self.skipTest('only one Python here')
        s = self.serve(msgpack)
        # Two clients that both find an empty storage cannot agree who makes the root object.
        ZODB.DB(ClientStorage(s.address, wait_timeout=30)).close()
        running = [self.smoke(s, version) for version in available]
        for process in running:
            self.finish(process)
        s.stop()
        self.assertEqual(self.counted(), smoke.MANY * len(available))

    def test_all_Pythons_use_one_server_at_the_same_time_Z(self):
        self.together(False)

    def test_all_Pythons_use_one_server_at_the_same_time_M(self):
        self.together(True)


for version_ in PYTHONS:
    setattr(TurnsTests, 'test_python_%d_%d_and_the_server_have_the_file_in_turns' % version_,
            lambda self, v=version_: self.turns(v))
    for name, msgpack_ in ('Z', False), ('M', True):
        setattr(AloneTests, 'test_python_%d_%d_%s' % (version_ + (name,)),
                lambda self, v=version_, m=msgpack_: self.alone(v, m))


if __name__ == '__main__':
    server.main()
