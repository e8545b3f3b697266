"""Swap the primary many times under load: what do clients notice?

    swap_many.py [--swaps N] [--clients M] [--lease 2s]

Three nodes, groupd, and clients of stock ZEO that commit one transaction after the other. After
each swap every client has to commit again. None may be told that it is not known whether its
transaction was committed: all that it may see is that a transaction which it has not finished yet
fails as it has to connect anew. At the end all that was acknowledged has to be there, once.
"""
import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time

import cluster
import ledger
import server
from failover_times import percentile


def is_swapped(c, target):
    """Whether it was done: it may be refused for a moment, as by a primary that is just in."""
    status, output = c.ctl(c.wait_primary(), 'swap', target.name)
    if status == 0:
        return True
    if 'try again' in output:
        print('refused: %s' % output, flush=True)
        return False
    raise AssertionError('swap to %s ended with status %d: %s' % (target.name, status, output))


def swap(c, clients, swaps):
    """Seconds until all clients have committed what they have begun after each swap."""
    times = []
    for number in range(swaps):
        target = c.replicas()[0]
        marks = clients.marks()
        began = time.monotonic()
        server.eventually(lambda: is_swapped(c, target), cluster.PATIENCE)
        server.eventually(lambda: clients.all_since(marks), cluster.PATIENCE)
        times.append(time.monotonic() - began)
        if c.wait_primary() is not target:
            raise AssertionError('swap %d: %s is not primary' % (number + 1, target.name))
        if (number + 1) % 50 == 0:
            print('%d swaps' % (number + 1), flush=True)
    return times


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--swaps', type=int, default=1000)
    parser.add_argument('--clients', type=int, default=6)
    parser.add_argument('--lease', default='2s')
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    directory = tempfile.mkdtemp(prefix='swap-many-')
    c = cluster.Cluster(os.path.join(directory, 'cluster'), lease=arguments.lease, blobs=False)
    clients = ledger.Clients(directory)
    try:
        with c:
            c.start()
            c.wait_primary()
            ledger.set_up(ledger.open_storage(c.addresses, wait_timeout=60), arguments.clients)
            for _ in range(arguments.clients):
                clients.start('write', addresses=c.addresses, padding=(100,), pause=.01)
            times = swap(c, clients, arguments.swaps)
            clients.stop()
            c.settle()
            ledgers = clients.ledgers()
            complaints = clients.errors() + c.stop_all() + c.converged()
            for node in c.nodes:
                complaints += ledger.check_attempts(node.data, ledgers)
    finally:
        clients.kill()
        shutil.rmtree(directory, ignore_errors=True)
    ends = ledger.ends(ledgers)
    if ends.get('unknown'):
        complaints.append('%d transactions were in doubt' % ends['unknown'])
    print('%d swaps; until all clients go on: median %.2f s, p99 %.2f s, max %.2f s' % (
        len(times), percentile(times, 50), percentile(times, 99), max(times)))
    print(', '.join('%d %s' % (ends[end], end) for end in sorted(ends)))
    print('\n'.join(complaints) or 'nothing was lost, and nothing in doubt')
    sys.stdout.flush()
    os._exit(1 if complaints else 0)


if __name__ == '__main__':
    main()
