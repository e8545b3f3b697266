"""What replication costs: commits beside a single server and stock ZEO, and how fast nodes catch up.

    figures_cluster.py [--rounds N] [--seconds S] [--megabytes N]

Three nodes with groupd on this machine, a server of the same program by itself, and runzeo; all on
one disk, measured in turns by zeobench. Then a node is away while so many megabytes are committed,
and gets them from the journal of another one; and its disk is lost, and it gets a copy. Prints
Markdown tables of medians. The three nodes share the processors that a single server has alone.
"""
import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import cluster
import server

CONNECTIONS = (1, 8, 64)
OBJECT_LEN = 1024
LARGE_LEN = 65536


def zeobench(*words):
    program = os.path.join(os.path.dirname(server.command()[0]), 'zeobench')
    done = subprocess.run([program, *words, '--json', '--no-progress', '--timeout', '120'],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def prepare(address):
    zeobench('prepare', '%s:%d' % address, '--objects', '2000', '--size', str(OBJECT_LEN))


def commits(address, connections, seconds):
    return zeobench('commits', '%s:%d' % address, '--connections', str(connections),
                    '--duration', str(seconds))


def rate(found):
    return found['servers'][0]['median']['commits_per_second']


def measure_commits(targets, arguments):
    values = {}
    for number in range(arguments.rounds):
        for connections in CONNECTIONS:
            for name, address in targets():
                values.setdefault((connections, name), []).append(
                    rate(commits(address, connections, arguments.seconds)))
            print('# round %d, %d connections: %s' % (number + 1, connections, ', '.join(
                '%s %.0f' % (name, values[connections, name][-1]) for name, _ in targets())),
                file=sys.stderr, flush=True)
    names = [name for name, _ in targets()]
    print('| commits/s of 1 kB, connections | %s | replicated / alone | replicated / runzeo |'
          % ' | '.join(names))
    print('|---:|' + '---:|' * (len(names) + 2))
    for connections in CONNECTIONS:
        found = [statistics.median(values[connections, name]) for name in names]
        print('| %d | %s | %.2f | %.2f |' % (
            connections, ' | '.join('%.0f' % it for it in found),
            found[0] / found[1], found[0] / found[2]))
    print('\nMedians of %d interleaved rounds of %g s.' % (arguments.rounds, arguments.seconds),
          flush=True)


def measure_beside_large(targets, arguments):
    """The longest that a small commit takes, by itself and beside one of 40 MB."""
    values = {}
    for _ in range(arguments.rounds):
        for name, address in targets():
            for beside in 0, 40:
                large = beside and threading.Thread(target=zeobench, args=(
                    'large', '%s:%d' % address, '--size', str(beside << 20)))
                if large:
                    threading.Timer(1, large.start).start()
                found = commits(address, 1, arguments.seconds)
                if large:
                    large.join()
                values.setdefault((name, beside), []).append(
                    found['servers'][0]['median']['commits_max_ms'])
    print('\n| longest commit of 1 kB, ms | by itself | beside one of 40 MB |\n|---|---:|---:|')
    for name, _ in targets():
        print('| %s | %.0f | %.0f |' % (
            name, *(statistics.median(values[name, beside]) for beside in (0, 40))), flush=True)


def measure_catching_up(c, megabytes):
    """Seconds until a node that was away has what was committed, and the same with a new disk."""
    replica = c.replicas()[0]
    c.settle()
    c.kill(replica)
    count = megabytes * (1 << 20) // LARGE_LEN
    zeobench('commits', '%s:%d' % c.wait_primary().address, '--connections', '8',
             '--size', str(LARGE_LEN), '--operations', str(count))
    for what in 'from the journal', 'with a new disk':
        began = time.monotonic()
        c.restart(replica)
        c.settle(300)
        seconds = time.monotonic() - began
        total = os.path.getsize(replica.data) / (1 << 20)
        length = megabytes if what == 'from the journal' else total
        print('%s: %.0f MB in %.1f s, %.0f MB/s (the start of the process included)' % (
            what, length, seconds, length / seconds), flush=True)
        c.kill(replica)
        c.wipe(replica)
    c.restart(replica)


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=4, help='of each measurement')
    parser.add_argument('--megabytes', type=int, default=256)
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix='figures-cluster-')
    others = {}
    for name, command in ('alone', server.command()), ('runzeo', server.REFERENCE):
        os.mkdir(os.path.join(directory, name))
        others[name] = server.Server(os.path.join(directory, name), command=command)
    c = cluster.Cluster(os.path.join(directory, 'cluster'), lease='2s', blobs=False)
    try:
        with c:
            c.start()
            for other in others.values():
                other.start()

            def targets():
                yield 'replicated', c.wait_primary().address
                yield from ((name, other.address) for name, other in others.items())

            for _, address in targets():
                prepare(address)
            measure_commits(targets, arguments)
            measure_beside_large(targets, arguments)
            for other in others.values():
                other.stop()
            measure_catching_up(c, arguments.megabytes)
    finally:
        for other in others.values():
            other.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == '__main__':
    main()
