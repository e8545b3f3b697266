"""A server process under test, and how tests end.

The server is `$SERVER_BIN` (a command that takes runzeo's options): by default the release build
of this project. `runzeo` there is `REFERENCE`, the Python server in the interpreter that runs the
tests; what it passes shows that a test asks for nothing but what ZEO does.
"""
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import unittest

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REFERENCE = [sys.executable, '-m', 'ZEO.runzeo']
RELEASE = os.path.join(PROJECT, 'target', 'release', 'standbyd')

STORAGE = '<filestorage 1>\n  path Data.fs\n</filestorage>\n'


def command():
    words = shlex.split(os.environ.get('SERVER_BIN') or RELEASE)
    if words == ['runzeo']:
        return REFERENCE
    if os.path.sep in words[0]:
        words[0] = os.path.abspath(words[0])
    return words


class Server:
    """One server on one port (or Unix socket), that can be stopped and started again."""

    def __init__(self, directory, storages=STORAGE, address=None, msgpack=False,
                 command=None, wrapper=(), zeo='', **options):
        self.directory = directory
        self.address = address or ('127.0.0.1', free_port())
        self.storages = storages
        self.zeo = zeo                  # sections in <zeo>
        self.options = dict({'client-conflict-resolution': 'true'}, **options)
        if msgpack:
            self.options['msgpack'] = 'true'
        self.command = command
        self.wrapper = list(wrapper)    # words before the command
        self.process = None
        self.log = os.path.join(directory, 'server.log')

    def start(self, command_=None, timeout=60):
        """Start, with the configuration as it is now, and wait until it accepts."""
        self.launch(command_)
        eventually(self.accepts, timeout)
        return self

    def launch(self, command_=None):
        """Start, and wait for nothing."""
        address = self.address
        lines = ['<zeo>', 'address %s' % (
            address if isinstance(address, str) else '%s:%d' % address)]
        lines += ['%s %s' % (k.replace('_', '-'), v) for k, v in self.options.items()]
        lines += [self.zeo, '</zeo>', self.storages]
        conf = os.path.join(self.directory, 'zeo.conf')
        with open(conf, 'w') as f:
            f.write('\n'.join(lines))
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(
                self.wrapper + (command_ or self.command or command()) + ['-C', conf],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def accepts(self):
        if self.process.poll() is not None:
            raise AssertionError('the server ended with status %s:\n%s' % (
                self.process.returncode, self.output()))
        try:
            dial(self.address).close()
        except OSError:
            return False
        return True

    def output(self):
        with open(self.log, errors='replace') as f:
            return f.read()[-4000:]

    def stop(self, sig=signal.SIGTERM, status=0):
        """Have it stop; complain unless it does so in good order."""
        if self.process is None:
            return
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(sig)
        try:
            process.wait(.2 if self.command is REFERENCE else 2)
        except subprocess.TimeoutExpired:
            # The Python server may take the signal, but sleep on until something happens.
            try:
                dial(self.address).close()
            except OSError:
                pass
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError('the server did not stop:\n' + self.output())
        if process.returncode != status:
            raise AssertionError('the server ended with status %s:\n%s' % (
                process.returncode, self.output()))
        if 'panicked at' in self.output():
            raise AssertionError('a thread of the server panicked:\n' + self.output())

    def kill(self):
        """kill -9"""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self, command_=None):
        self.stop()
        self.start(command_)

    def resident(self):
        """Bytes of memory that the process has."""
        with open('/proc/%d/status' % self.process.pid) as f:
            for line in f:
                if line.startswith('VmRSS:'):
                    return int(line.split()[1]) * 1024
        raise AssertionError('no VmRSS')


_ports_used = set()


def free_port():
    """A port below the range of those that the system hands out, so that it stays free.

    `STANDBY_TEST_PORTS` is `FROM-TO` if others look for theirs at the same time.
    """
    first, last = map(int, os.environ.get('STANDBY_TEST_PORTS', '10000-31000').split('-'))
    while True:
        port = random.SystemRandom().randrange(first, last)
        with socket.socket() as s:
            try:
                s.bind(('127.0.0.1', port))
            except OSError:
                continue
        if port not in _ports_used:
            _ports_used.add(port)
            return port


def dial(address, timeout=30):
    if isinstance(address, str):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(timeout)
        try:
            s.connect(address)
        except OSError:
            s.close()
            raise
        return s
    return socket.create_connection(address, timeout)


def eventually(function, seconds=30):
    """Wait until *function* is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = function()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError('not within %s s: %s' % (seconds, function))
        time.sleep(.02)


def answers(storage):
    """Is a client connected now? `is_connected` may not know yet that it is not any more."""
    from ZEO.Exceptions import ClientDisconnected
    try:
        storage.ping()
        return True
    except ClientDisconnected:
        return False


def main():
    """Run the tests of the main module; end with the line that tests/run reads."""
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    for test, reason in result.skipped:
        print('SKIPPED: %s: %s' % (test.id().partition('.')[2], reason))
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = max(0, result.testsRun - failed - len(result.skipped))
    summary(passed, failed, len(result.skipped))


def summary(passed, failed, skipped):
    sys.stderr.flush()
    print('%d passed, %d failed, %d skipped' % (passed, failed, skipped), flush=True)
    # Threads of clients must not keep the process.
    os._exit(1 if failed else 0)
