"""kill -9 under load: is every acknowledged transaction there afterwards?

    kill9.py [--rounds N] [--msgpack]
    kill9.py --self-test

Eight client processes commit: each its own objects, and increments of counters that all share
(by retrying after conflicts). Each writes down what was acknowledged, in a file. In every round
the server is killed at a random time under this load and started again; then everything that was
acknowledged in any round has to be there, by its tid and its content. At the end ZODB's own tools
have to find the file sound, and the Python server has to serve the same.

`--self-test` cuts the last acknowledged transaction off the file after a kill: the check has to
find that out.
"""
import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time

from ZODB.FileStorage import FileIterator
from ZODB.utils import p64

import ledger
import server

CLIENTS = 8


class Run:

    def __init__(self, directory, msgpack):
        self.directory = directory
        self.server = server.Server(directory, msgpack=msgpack)
        self.clients = ledger.Clients(directory)
        self.checked = [0] * CLIENTS

    def set_up(self):
        self.server.start()
        ledger.set_up(ledger.open_storage(self.port), CLIENTS)
        for _ in range(CLIENTS):
            self.clients.start('write', addresses=self.port)

    @property
    def port(self):
        return self.server.address[1]

    def kill_under_load(self):
        """Kill the server when every client has committed again, at a random time."""
        marks = self.clients.marks()
        server.eventually(lambda: self.clients.all_since(marks), 120)
        time.sleep(random.uniform(0, 1.5))
        self.server.kill()

    def acknowledged(self):
        """What each client wrote down."""
        return [ledger.acknowledged(path) for path in self.clients.paths]

    def round(self):
        """Kill, start, check; all that was acknowledged before the kill has to be there."""
        self.kill_under_load()
        logs = self.acknowledged()
        self.server.start()
        old, self.checked = self.checked, [len(log) for log in logs]
        fresh = [log[n:] for log, n in zip(logs, old)]
        print('   %d transactions acknowledged' % sum(map(len, fresh)), flush=True)
        return ledger.check(self.port, fresh)

    def check_file(self):
        """ZODB's own tools find the file sound, and in it everything acknowledged."""
        path = os.path.join(self.directory, 'Data.fs')
        return ledger.check_file(path, self.acknowledged())

    def check_with_reference(self):
        """The Python server serves the same file."""
        self.server.start(server.REFERENCE)
        complaints = ledger.check(self.port, self.acknowledged())
        self.server.stop()
        return complaints

    def stop(self):
        self.clients.kill()
        self.server.stop()

    def close(self):
        self.clients.kill()
        self.server.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def self_test(run):
    """Lose the newest acknowledged transaction: are there complaints?"""
    run.set_up()
    run.kill_under_load()
    run.clients.kill()
    logs = run.acknowledged()
    newest = max(entry['tid'] for log in logs for entry in log)
    path = os.path.join(run.directory, 'Data.fs')
    with contextlib.closing(FileIterator(path, start=p64(newest))) as transactions:
        pos = next(iter(transactions))._tpos
    os.truncate(path, pos)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path + '.index')
    run.server.start()
    over_zeo = ledger.check(run.port, logs)
    run.server.stop()
    in_file = run.check_file()
    return ['the loss of tid %016x was not noticed %s' % (newest, where)
            for where, complaints in (('over ZEO', over_zeo), ('in the file', in_file))
            if not any('%016x' % newest in complaint for complaint in complaints)]


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--self-test', action='store_true')
    parser.add_argument('--msgpack', action='store_true')
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    tally = ledger.Tally()
    run = Run(tempfile.mkdtemp(prefix='kill9-'), arguments.msgpack)
    try:
        if arguments.self_test:
            tally.step('self-test', lambda: self_test(run))
        else:
            tally.step('start', run.set_up)
            for n in range(arguments.rounds):
                if not tally.step('round %d' % (n + 1), run.round):
                    break
            tally.step('all rounds', lambda: ledger.check(run.port, run.acknowledged()))
            tally.step('stop', run.stop)
            tally.step('the file', run.check_file)
            tally.step('served by runzeo', run.check_with_reference)
    finally:
        if tally.failed:
            print(run.server.output())
        run.close()
    server.summary(tally.passed, tally.failed, 0)


if __name__ == '__main__':
    main()
