"""A Zope site of two processes on one server, used through the web as its managers do.

Zope is made by `mkwsgiinstance` and started by `runwsgi`; its `<filestorage>` becomes a
`<zeoclient>`. The tests have the site one after the other; each uses a folder of its own.
"""
import base64
import html
import http.client
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

import server
from server import eventually

sys.path.insert(0, os.path.join(server.PROJECT, 'tests'))

import environment  # noqa: E402 (in the directory above)

REQUIREMENTS = os.path.join(server.PROJECT, 'tests', 'python', 'requirements-zope.txt')
USER = 'admin:secret'
START = 90              # seconds until Zope serves
PATIENCE = 30           # seconds until a site has noticed
DATABASE = '/Control_Panel/Database/main'

FILESTORAGE = re.compile(r'<filestorage>.*?</filestorage>', re.S)
ZEOCLIENT = '''<zeoclient>
     server %s:%d
     storage 1
     min-disconnect-poll 1
     max-disconnect-poll 1
     cache-size 20MB
   </zeoclient>'''


class Zope:
    """One Zope process."""

    def __init__(self, python, directory, zeo):
        self.bin = os.path.dirname(python)
        self.directory = directory
        self.zeo = zeo
        self.port = server.free_port()
        self.process = None

    def make(self):
        subprocess.run([os.path.join(self.bin, 'mkwsgiinstance'), '-d', self.directory,
                        '-u', USER], check=True, timeout=60)
        self.edit('zope.conf', lambda text: FILESTORAGE.sub(ZEOCLIENT % self.zeo, text))
        self.edit('zope.ini', lambda text: re.sub(
            r'^port = .*$', 'port = %d' % self.port, text, flags=re.M))

    def edit(self, name, change):
        path = os.path.join(self.directory, 'etc', name)
        with open(path) as f:
            old = f.read()
        new = change(old)
        assert new != old, 'nothing to change in ' + path
        with open(path, 'w') as f:
            f.write(new)

    def start(self):
        environ = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
        with open(os.path.join(self.directory, 'console.log'), 'wb') as log:
            self.process = subprocess.Popen(
                [os.path.join(self.bin, 'runwsgi'),
                 os.path.join(self.directory, 'etc', 'zope.ini')],
                cwd=self.directory, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self):
        eventually(self.serves, START)

    def serves(self):
        if self.process.poll() is not None:
            raise AssertionError('Zope ended:\n' + self.output())
        try:
            return self.request('GET', '/')[0] == 200
        except OSError:
            return False

    def output(self):
        with open(os.path.join(self.directory, 'console.log'), errors='replace') as f:
            return f.read()[-6000:]

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def request(self, method, path, body=None, headers=()):
        """Status, headers, and body of the answer to one request of the manager."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(
                headers, Authorization='Basic ' + base64.b64encode(USER.encode()).decode()))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.request('GET', path)
        if status != 200:
            raise Refused('GET', path, status, body)
        return body

    def post(self, path, **form):
        """Send a form; a field whose value is a list is sent several times."""
        body = urllib.parse.urlencode(form, doseq=True)
        status, _, answer = self.request(
            'POST', path, body, {'Content-Type': 'application/x-www-form-urlencoded'})
        if status not in (200, 201, 204, 302):
            raise Refused('POST', path, status, answer)
        return answer

    def upload(self, path, name, data):
        """Add a File object with the form that has a file in it."""
        boundary = 'x%016xx' % random.getrandbits(64)
        parts = [b'Content-Disposition: form-data; name="id"\r\n\r\n' + name.encode(),
                 b'Content-Disposition: form-data; name="file"; filename="x.bin"\r\n'
                 b'Content-Type: application/octet-stream\r\n\r\n' + data]
        separator = b'--' + boundary.encode()
        body = b''.join(separator + b'\r\n' + part + b'\r\n' for part in parts)
        status, _, answer = self.request(
            'POST', path + '/manage_addFile', body + separator + b'--\r\n',
            {'Content-Type': 'multipart/form-data; boundary=' + boundary})
        if status not in (200, 302):
            raise Refused('POST', path, status, answer)


class Refused(Exception):

    def __init__(self, method, path, status, body):
        text = re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', ' ', body.decode('utf-8', 'replace')))
        super().__init__('%s %s: %d: %s' % (method, path, status, text[:1000]))
        self.status = status


class SiteTests(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        try:
            python = environment.venv(REQUIREMENTS)
        except environment.Unavailable as reason:
            raise unittest.SkipTest('no Zope: %s' % reason) from reason
        cls.bin = os.path.dirname(python)
        cls.directory = tempfile.mkdtemp(prefix='sb')
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.server = server.Server(cls.directory)
        cls.addClassCleanup(cls.server.stop)
        cls.server.start()
        cls.sites = [Zope(python, os.path.join(cls.directory, name), cls.server.address)
                     for name in ('one', 'two')]
        for site in cls.sites:
            site.make()
            cls.addClassCleanup(site.stop)
        # The first one makes the application and its user, so it is alone for that.
        for site in cls.sites:
            site.start()
            site.wait()

    def setUp(self):
        self.one, self.two = self.sites
        self.folder = '/' + re.sub(r'\W', '_', self._testMethodName)
        self.one.post('/manage_addFolder', id=self.folder[1:], title='of a test')
        self.seen(self.two, self.folder + '/manage_main', b'of a test')

    def add_method(self, site, name, text):
        site.post(self.folder + '/manage_addDTMLMethod', id=name, title='', file=text)

    def edit_method(self, site, name, text):
        site.post('%s/%s/manage_edit' % (self.folder, name), data=text, title='')

    def seen(self, site, path, text):
        """Wait until a page has that text in it, and return the page."""
        def look():
            try:
                body = site.get(path)
            except (OSError, Refused):
                return None
            return body if text in body else None
        return eventually(look, PATIENCE)

    def gone(self, site, path):
        eventually(lambda: site.request('GET', path)[0] == 404, PATIENCE)

    def undo_form(self, site):
        """[(value of the checkbox, description)] of the transactions that can be undone."""
        page = site.get(DATABASE + '/manage_UndoForm').decode()
        rows = re.findall(
            r'name="transaction_info:list" value="([^"]*)".*?<td>\s*(.*?)\s*by <strong>',
            page, re.S)
        return [(html.unescape(value), html.unescape(description).replace('<br />', ''))
                for value, description in rows]

    def undo(self, site, *values):
        return site.post(DATABASE + '/manage_undo_transactions',
                         **{'transaction_info:list': values})

    def test_content_made_through_one_process_is_seen_through_the_other(self):
        self.add_method(self.one, 'hello', '<p>h\u00e4llo <dtml-var "1 + 1"></p>')
        self.seen(self.two, self.folder + '/hello', 'h\u00e4llo 2'.encode())
        data = random.Random(1).randbytes(3 << 20)
        self.one.upload(self.folder, 'data', data)
        self.seen(self.two, self.folder + '/data', data[:100])
        self.assertEqual(self.two.get(self.folder + '/data'), data)
        self.two.post(self.folder + '/manage_addFolder', id='inner')
        self.seen(self.one, self.folder + '/manage_main', b'inner')
        self.two.post(self.folder + '/manage_renameObject', id='inner', new_id='renamed')
        self.seen(self.one, self.folder + '/manage_main', b'renamed')
        self.one.post(self.folder + '/manage_delObjects', **{'ids:list': ['data']})
        self.gone(self.two, self.folder + '/data')

    def restarted(self, stop):
        self.add_method(self.one, 'before', 'before the restart')
        data = random.Random(2).randbytes(1 << 20)
        self.one.upload(self.folder, 'data', data)
        stop()
        self.server.start()
        for site in self.sites:
            self.seen(site, self.folder + '/before', b'before the restart')
            self.assertEqual(site.get(self.folder + '/data'), data)
        # Both write again, and see what the other wrote.
        for site, other, name in (self.one, self.two, 'one'), (self.two, self.one, 'two'):
            self.add_method(site, name, 'after the restart')
            self.seen(other, '%s/%s' % (self.folder, name), b'after the restart')

    def test_the_site_goes_on_when_the_server_was_restarted(self):
        self.restarted(self.server.stop)

    def test_the_site_goes_on_when_the_server_was_killed(self):
        self.restarted(self.server.kill)

    def test_a_request_that_comes_while_the_server_is_away_waits_for_it(self):
        self.add_method(self.one, 'page', 'first')
        self.server.stop()
        request = threading.Thread(target=self.edit_method, args=(self.one, 'page', 'changed'))
        request.start()
        self.server.start()
        request.join()
        self.seen(self.one, self.folder + '/page', b'changed')
        self.seen(self.two, self.folder + '/page', b'changed')

    def test_the_Python_server_and_ours_serve_the_site_in_turns(self):
        self.add_method(self.one, 'ours', 'written here')
        self.server.stop()
        self.server.start(server.REFERENCE)
        self.seen(self.one, self.folder + '/ours', b'written here')
        self.add_method(self.two, 'theirs', 'written there')
        self.undo(self.two, self.undo_form(self.two)[0][0])
        self.gone(self.two, self.folder + '/theirs')
        self.undo(self.two, self.undo_form(self.two)[0][0])
        self.seen(self.two, self.folder + '/theirs', b'written there')
        self.server.stop()
        self.server.start()
        for site in self.sites:
            self.seen(site, self.folder + '/ours', b'written here')
            self.seen(site, self.folder + '/theirs', b'written there')

    def test_changes_are_undone_from_the_management_interface(self):
        page = self.folder + '/page'
        self.add_method(self.one, 'page', 'first')
        for text in 'second', 'third':
            self.edit_method(self.one, 'page', text)
        self.seen(self.two, page, b'third')
        form = self.undo_form(self.one)
        self.assertEqual([description for _, description in form[:3]],
                         [page + '/manage_edit'] * 2 + [self.folder + '/addDTMLMethod'])

        # Not what was changed again since.
        answer = self.undo(self.one, form[1][0])
        self.assertIn(b'UndoError', answer)
        self.assertEqual(self.one.get(page), b'third')
        # The last one, from the other process; then the two at once that are left.
        self.undo(self.two, form[0][0])
        self.seen(self.one, page, b'second')
        form = self.undo_form(self.one)
        self.undo(self.one, form[1 + 1][0], form[1 + 2][0])
        self.gone(self.one, page)
        self.gone(self.two, page)
        # And again, as an undo is a change, too.
        self.undo(self.two, self.undo_form(self.two)[0][0])
        self.seen(self.one, page, b'second')

    def test_an_old_revision_is_copied_from_the_history(self):
        page = self.folder + '/page'
        self.add_method(self.one, 'page', 'first')
        for text in 'second', 'third':
            self.edit_method(self.one, 'page', text)
        form = self.seen(self.two, page + '/manage_change_history_page', b'keys:list').decode()
        keys = re.findall(r'value="([\d.]+)" name="keys:list"', form)
        self.assertEqual(len(keys), 3, form)
        self.two.post(page + '/manage_historyCopy', **{'keys:list': [keys[2]]})
        self.seen(self.one, page, b'first')
        self.assertIn(b'second', self.one.get(
            '%s/HistoricalRevisions/%s/manage_main' % (page, keys[1])))

    def packed(self, pack):
        self.add_method(self.one, 'page', 'first')
        data = random.Random(3).randbytes(2 << 20)
        self.one.upload(self.folder, 'dropped', data)
        self.one.upload(self.folder, 'kept', data[:100000])
        self.one.post(self.folder + '/manage_delObjects', **{'ids:list': ['dropped']})
        for n in range(10):
            self.edit_method(self.one, 'page', 'number %d' % n)
        path = os.path.join(self.directory, 'Data.fs')
        size = os.path.getsize(path)
        pack()
        self.assertLess(os.path.getsize(path), size - (2 << 20))
        for site in self.sites:
            self.seen(site, self.folder + '/page', b'number 9')
            self.assertEqual(site.get(self.folder + '/kept'), data[:100000])
            self.gone(site, self.folder + '/dropped')
            self.assertEqual(self.undo_form(site), [])
            self.assertIn(b'no transactions that can be undone',
                          site.get(DATABASE + '/manage_UndoForm'))
        history = self.one.get(self.folder + '/page/manage_change_history_page')
        self.assertEqual(history.count(b'keys:list'), 1)
        # What comes after it can be undone.
        self.edit_method(self.two, 'page', 'after the pack')
        self.seen(self.one, self.folder + '/page', b'after the pack')
        (value, _), = self.undo_form(self.one)
        self.undo(self.one, value)
        self.seen(self.two, self.folder + '/page', b'number 9')

    def test_the_database_is_packed_from_the_control_panel(self):
        self.packed(lambda: self.one.post(
            DATABASE + '/manage_pack', **{'days:float': '0'}))

    def test_the_database_is_packed_by_zeopack(self):
        def pack():
            done = subprocess.run(
                [os.path.join(self.bin, 'zeopack'), '%s:%d' % self.server.address],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
            self.assertEqual((done.returncode, done.stdout), (0, b''))
        self.packed(pack)

    def test_nothing_is_lost_when_both_processes_write_into_one_folder(self):
        """Zope tries again after a conflict, three times; the manager, until it works."""
        errors = []

        def write(site, name):
            try:
                for n in range(15):
                    self.insist(site, 'from-%s-%d' % (name, n))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=pair)
                   for pair in zip(self.sites, ('one', 'two'))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        wanted = {'from-%s-%d' % (name, n) for name in ('one', 'two') for n in range(15)}
        for site in self.sites:
            for name in wanted:
                self.seen(site, '%s/%s' % (self.folder, name), name.encode())
            names = re.findall(r'from-\w+-\d+', site.get(self.folder + '/manage_main').decode())
            self.assertEqual(set(names), wanted)

    def insist(self, site, name):
        deadline = time.monotonic() + 60
        while True:
            try:
                self.add_method(site, name, name)
                return
            except Refused as error:
                if time.monotonic() > deadline or 'Conflict' not in str(error):
                    raise


if __name__ == '__main__':
    server.main()
