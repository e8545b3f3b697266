"""How long clients wait when the primary is killed: figures, not a test.

    failover_times.py [--kills N] [--clients M] [--daemon 'spread 4803@localhost'] [--lease 2s]
                      [--detection MS] [--json]

Three nodes on this machine, and clients of stock ZEO that commit one small transaction after the
other. The primary is killed with kill -9, and counted is the time until a client is told that a
transaction was committed that it has begun since. The killed node is started again, and has all,
before the next kill. The daemon is groupd, which does not fail with the node, or the one that
`--daemon` names; `--detection` is how long groupd does not notice partitions, which does not
concern kills: the end of a session is told at once. A machine that fails is noticed later, by as
long as its daemon takes for that.
"""
import argparse
import json
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


def measure(c, clients, kills, say, kill=None, restart=None):
    """Seconds until each client's first commit, for each kill of the primary (a node of `c`)."""
    kill, restart = kill or c.kill, restart or c.restart
    found = []
    for number in range(kills):
        primary = c.wait_primary()
        c.settle()
        marks = clients.marks()
        server.eventually(lambda: clients.all_since(marks), cluster.PATIENCE)
        marks = clients.marks()
        kill(primary)
        killed = time.monotonic()
        server.eventually(lambda: None not in first_commits(clients, marks, killed),
                          cluster.PATIENCE)
        times = [at - killed for at in first_commits(clients, marks, killed)]
        found.append(times)
        say('kill %d of %s: first %.2f s, median %.2f s, last %.2f s' % (
            number + 1, primary.name, min(times), percentile(times, 50), max(times)))
        restart(primary)
        errors = clients.errors() + clients.ended()
        if errors:
            raise AssertionError('\n'.join(errors))
    return found


def first_commits(clients, marks, killed):
    """When each was acknowledged what it has begun since; None for whom that is not so."""
    return [next((entry['ended'] for entry in ledger.read_ledger(path, mark)
                  if entry['end'] == 'ok' and entry['began'] > killed), None)
            for path, mark in zip(clients.paths, marks)]


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--daemon', default='groupd',
                        help='as in <standby>, of a daemon that runs (default: our own groupd)')
    parser.add_argument('--lease', default='2s')
    parser.add_argument('--detection', type=int, default=50)
    parser.add_argument('--json', action='store_true', help='print the times as JSON, too')
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    directory = tempfile.mkdtemp(prefix='failover-times-')
    c = cluster.Cluster(os.path.join(directory, 'cluster'), daemon=arguments.daemon,
                        lease=arguments.lease, blobs=False)
    clients = ledger.Clients(directory)
    try:
        with c:
            c.start()
            c.wait_primary()
            if c.daemon.can_part:
                c.daemon.tell('detection', str(arguments.detection))
            ledger.set_up(ledger.open_storage(c.addresses, wait_timeout=60), arguments.clients)
            for _ in range(arguments.clients):
                clients.start('write', addresses=c.addresses, padding=(100,), pause=.01,
                              shares=False)
            found = measure(c, clients, arguments.kills, lambda line: print(line, flush=True))
            clients.stop()
            c.settle()
            complaints = c.stop_all() + c.converged()
            for node in c.nodes:
                complaints += ledger.check_attempts(node.data, clients.ledgers())
    finally:
        clients.kill()
        shutil.rmtree(directory, ignore_errors=True)
    report('%s, lease %s, %d clients' % (
        arguments.daemon, arguments.lease, arguments.clients), found)
    if arguments.json:
        print(json.dumps(found))
    print('\n'.join(complaints) or 'nothing was lost')
    sys.stdout.flush()
    os._exit(1 if complaints else 0)


def report(what, found):
    every = sum(found, [])
    first = [min(times) for times in found]
    print('%s, %d kills' % (what, len(found)))
    for name, values in ('first client', first), ('every client', every):
        print('%s: median %.2f s, p99 %.2f s, max %.2f s' % (
            name, percentile(values, 50), percentile(values, 99), max(values)))


if __name__ == '__main__':
    main()
