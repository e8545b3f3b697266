"""Clients of several Pythons and versions of ZEO, each alone and all at the same time.

Those that are not installed here are skipped. `$MATRIX_JOBS` clients at a time are tried alone
(default: two for each processor, as one works for a third of its time, and waits for the rest).
"""
import concurrent.futures
import os
import re
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
PATIENCE = 180          # seconds for what one client does

ZEO_5, ZEO_6 = ['5.2', '5.3', '5.4'], ['6.0', '6.1', '6.2']

# What exists: ZEO 6.2 wants Python 3.10, and there is no uvloop for Python 2.
PYTHONS = {
    (2, 7): ('2.7', ZEO_5, [False]),
    (3, 7): ('3.7', ZEO_5, [False, True]),
    (3, 8): ('3.8', ZEO_5, [False, True]),
    (3, 9): ('3.9', ZEO_6[:2], [False, True]),
    (3, 10): ('3.10', ZEO_6, [False, True]),
    (3, 11): ('3.11', ZEO_6, [False, True]),
    (3, 12): ('3.11', ZEO_6, [False, True]),
    (3, 13): ('3.11', ZEO_6, [False, True]),
}
FOUND = environment.interpreters()


def requirements(name):
    return os.path.join(HERE, 'requirements-%s.txt' % name)


def packages(version, zeo, uvloop=False):
    """PYTHONPATH for a Python with this version of ZEO; raises `Unavailable`."""
    python = FOUND.get(version)
    if not python:
        raise environment.Unavailable('no Python %d.%d here' % version)
    paths = [environment.site(requirements(PYTHONS[version][0]), python)]
    if uvloop:
        paths.append(environment.site(requirements('uvloop'), python))
    # The same for all Pythons, as there is nothing to compile.
    paths.append(environment.site(
        requirements('zeo-' + zeo), environment.best_interpreter(), '--no-deps'))
    return os.pathsep.join(paths)


def start(version, path, name, *arguments):
    return subprocess.Popen(
        [FOUND[version], os.path.join(HERE, name)] + list(arguments),
        env=dict(os.environ, PYTHONPATH=path), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(process, line):
    """Read output until that line; what was read instead if it did not come."""
    output = []
    for got in process.stdout:
        if got.decode('utf-8', 'replace').strip() == line:
            return
        output.append(got)
    raise AssertionError(b''.join(output).decode('utf-8', 'replace'))


def tell(process):
    process.stdin.write(b'\n')
    process.stdin.flush()


def finish(*processes):
    """Wait for the end of all; the outputs of those that failed are the error."""
    errors = []
    for process in processes:
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        if process.returncode:
            errors.append(out.decode('utf-8', 'replace'))
    if errors:
        raise AssertionError('\n'.join(errors))


def newest(version):
    return PYTHONS[version][1][-1]


class Case(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='sb')
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def serve(self, msgpack):
        s = server.Server(self.directory, msgpack=msgpack)
        self.addCleanup(s.stop)
        return s.start()

    def need(self, version):
        try:
            return packages(version, newest(version))
        except environment.Unavailable as reason:
            self.skipTest(str(reason))

    def available(self):
        """{version: PYTHONPATH} of each Python, with the newest ZEO for it."""
        found = {}
        for version in PYTHONS:
            try:
                found[version] = packages(version, newest(version))
            except environment.Unavailable:
                continue
        if len(found) < 2:
            self.skipTest('only one Python here')
        return found

    def counted(self):
        fs = ZODB.FileStorage.FileStorage(os.path.join(self.directory, 'Data.fs'), read_only=True)
        db = ZODB.DB(fs)
        with db.transaction() as connection:
            n = connection.root()['counter']()
        db.close()
        return n


def live(version, zeo, msgpack, uvloop):
    """One client has a server for itself. Returns why not, or raises what was wrong."""
    try:
        path = packages(version, zeo, uvloop)
    except environment.Unavailable as reason:
        return str(reason)
    directory = tempfile.mkdtemp(prefix='sb')
    s = server.Server(directory, msgpack=msgpack, storages=WITH_BLOBS)
    try:
        s.start()
        process = start(version, path, 'life.py', 'alone', str(s.address[1]),
                        'python %d.%d' % version, directory)
        try:
            wait_for(process, 'restart')
            s.restart()
            tell(process)
            finish(process)
        finally:
            process.kill()
            process.communicate()
        s.stop()
    finally:
        s.kill()
        shutil.rmtree(directory, ignore_errors=True)


WITH_BLOBS = '<filestorage 1>\n  path Data.fs\n  blob-dir blobs\n</filestorage>\n'


class AloneTests(unittest.TestCase):
    """One test for each Python, ZEO, event loop and encoding, added below.

    They run side by side, as each has a server for itself and waits much.
    """

    running = {}        # name: the future of it

    def alone(self):
        reason = self.running[self._testMethodName].result()
        if reason:
            self.skipTest(reason)


LIVES = {
    'test_python_%d_%d_zeo_%s_%s_%s' % (
        version_ + (zeo_.replace('.', '_'), 'uvloop' if uvloop_ else 'asyncio',
                    'M' if msgpack_ else 'Z')): (version_, zeo_, msgpack_, uvloop_)
    for version_, (_, zeos, loops) in PYTHONS.items()
    for zeo_ in zeos for uvloop_ in loops for msgpack_ in (False, True)}

for name_ in LIVES:
    setattr(AloneTests, name_, AloneTests.alone)


class TurnsTests(Case):
    """ZODB of each Python and this server have the file in turns; one test each, added below."""

    def turns(self, version):
        packages_ = self.need(version)
        path = os.path.join(self.directory, 'Data.fs')
        finish(start(version, packages_, 'file_turn.py', path, '0'))
        with open(path, 'rb') as f:
            magic = f.read(4)
        for turn in '1', '2':
            s = self.serve(False)
            finish(start(version, packages_, 'smoke.py', str(s.address[1]),
                         'python %d.%d turn %s' % (version + (turn,))))
            s.stop()
            finish(start(version, packages_, 'file_turn.py', path, turn))
        with open(path, 'rb') as f:
            self.assertEqual(f.read(4), magic)


for version_ in PYTHONS:
    setattr(TurnsTests, 'test_python_%d_%d_and_the_server_have_the_file_in_turns' % version_,
            lambda self, v=version_: self.turns(v))


class TogetherTests(Case):

    def together(self, msgpack):
        found = self.available()
        s = self.serve(msgpack)
        # Two clients that both find an empty storage cannot agree who makes the root object.
        ZODB.DB(ClientStorage(s.address, wait_timeout=30)).close()
        running = [start(version, path, 'smoke.py', str(s.address[1]), 'python %d.%d' % version)
                   for version, path in found.items()]
        finish(*running)
        s.stop()
        self.assertEqual(self.counted(), smoke.MANY * len(found))

    def test_all_Pythons_use_one_server_at_the_same_time_Z(self):
        self.together(False)

    def test_all_Pythons_use_one_server_at_the_same_time_M(self):
        self.together(True)

    def meet(self, msgpack):
        found = self.available()
        s = self.serve(msgpack)
        ZODB.DB(ClientStorage(s.address, wait_timeout=30)).close()
        names = ['python %d.%d' % version for version in found]
        running = [start(version, path, 'life.py', 'meet', str(s.address[1]), name, *names)
                   for (version, path), name in zip(found.items(), names)]
        try:
            for process in running:
                wait_for(process, 'ready')
            for process in running:
                tell(process)
            finish(*running)
        finally:
            for process in running:
                process.kill()
        s.stop()

    def test_all_Pythons_read_and_undo_what_the_others_wrote_Z(self):
        self.meet(False)

    def test_all_Pythons_read_and_undo_what_the_others_wrote_M(self):
        self.meet(True)


def load_tests(_loader, tests, _pattern):
    """Start what was asked for of `AloneTests`, before the first of all tests runs."""
    jobs = int(os.environ.get('MATRIX_JOBS') or 2 * (os.cpu_count() or 1))
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    for name in re.findall(r'<__main__\.AloneTests testMethod=(\w+)>', repr(tests)):
        AloneTests.running[name] = pool.submit(live, *LIVES[name])
    return tests


if __name__ == '__main__':
    server.main()
