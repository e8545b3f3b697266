"""A cluster of three machines with corosync, as far as one machine has three: real cuts.

Each node, with its corosync, is in a network namespace of its own, and so are the clients, in that
of the bridge. So who is cut off is cut off from clients and other nodes alike, by all ways.

    failover.py [--keep]
    failover.py --times N [--token MS] [--coefficient MS] [--lease TIME]

With `--times` it is a measurement: N times the node and the daemon of the primary's machine are
killed together, which nobody tells the other daemons (they find out by their token, 3000 ms and
650 ms for the third node if corosync is not told otherwise), and what is printed is how long each
client waited until it was told that a transaction was committed that it has begun since.

The interpreter has to have ZEO. Needs root, and corosync.
"""
import argparse
import ctypes
import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), 'python'))
sys.dont_write_bytecode = True

import cluster  # noqa: E402 (in the directory beside)
import failover_times  # noqa: E402
import ledger  # noqa: E402
import server  # noqa: E402

# Both directories have a `cluster`: this one is of machines, the other one of nodes.
specification = importlib.util.spec_from_file_location(
    'machines', os.path.join(HERE, 'cluster.py'))
machines = importlib.util.module_from_spec(specification)
specification.loader.exec_module(machines)

WRITERS = 6
CLIENTS_ADDRESS = machines.NETWORK % (0, 254)
CLONE_NEWNET = 0x40000000


class Run:

    def __init__(self, directory, lease='2s', **times):
        self.directory = directory
        self.lease = lease
        self.machines = machines.Cluster(3, os.path.join(directory, 'machines'), **times)
        self.cluster = None
        self.writers = ledger.Clients(directory)
        self.readers = ledger.Clients(directory)

    def prepare(self):
        """What may not be possible here."""
        machines.install()
        self.machines.prepare()
        for machine in self.machines.nodes:
            machine.start_daemon()
        for machine in self.machines.nodes:
            machine.wait_for_daemon()

    def begin(self):
        """three machines with corosync, three nodes that replicate, and clients"""
        self.machines.in_hub('addr', 'add', CLIENTS_ADDRESS + '/24', 'dev', 'br0')
        # From here on we, and the clients that we start, are where the bridge is.
        with open('/proc/%d/ns/net' % self.machines.hub.pid) as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), 'setns')
        self.machine = dict(zip(cluster.NAMES, self.machines.nodes))
        c = self.cluster = cluster.Cluster(
            os.path.join(self.directory, 'cluster'), daemon='corosync', lease=self.lease,
            hosts={name: machine.address for name, machine in self.machine.items()},
            wrappers={name: machine.inside() for name, machine in self.machine.items()})
        c.start()
        c.wait_primary()
        ledger.set_up(ledger.open_storage(c.addresses, wait_timeout=60), WRITERS)
        for number in range(WRITERS):
            self.writers.start(
                'write', addresses=c.addresses, pause=.01, padding=(10, 1000, 5000),
                blob_dir=os.path.join(self.directory, 'blobs-%d' % number))
        self.readers.start('read', addresses=c.read_addresses)
        self.readers.wait_until_used(cluster.PATIENCE)
        self.all_go_on()

    def all_go_on(self):
        marks = self.writers.marks()
        began = time.monotonic()
        try:
            server.eventually(lambda: self.writers.all_since(marks), cluster.PATIENCE)
        except AssertionError:
            raise AssertionError('writers %s do not go on' % (
                self.writers.without_since(marks))) from None
        print('   all go on after %.1f s' % (time.monotonic() - began), flush=True)
        self.cluster.alive()

    def complaints(self):
        return (self.writers.ended() + self.readers.ended() + self.writers.errors()
                + self.readers.errors())

    def killed_primary(self):
        """kill -9 of the primary"""
        c = self.cluster
        primary = c.wait_primary()
        c.kill(primary)
        self.all_go_on()
        c.restart(primary)
        c.settle()
        return self.complaints()

    def cut_primary(self):
        """the network of the primary's machine is cut"""
        primary = self.cluster.wait_primary()
        others = [node for node in self.cluster.nodes if node is not primary]
        return self.cut(others, [primary])

    def cut_replica(self):
        """the network of a replica's machine is cut"""
        replica, other = self.cluster.replicas()
        return self.cut([other, self.cluster.wait_primary()], [replica])

    def cut(self, *parts):
        """The clients stay with the first part."""
        self.machines.partition(*([self.machine[node.name] for node in part] for part in parts))
        self.new_client_goes_on()
        self.machines.partition()
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def new_client_goes_on(self):
        """Those that wait for an answer of who is cut off do so for a minute or more.

        Nothing tells them, and they send nothing before their next heartbeat.
        """
        began = time.monotonic()
        ledger.persist_new(self.cluster.addresses, cluster.PATIENCE)
        print('   a new client goes on after %.1f s' % (time.monotonic() - began), flush=True)
        self.cluster.alive()

    def mend(self):
        """all is well again, after a step that has failed"""
        self.machines.partition()
        for name, machine in self.machine.items():
            self.machines.in_hub('link', 'set', machine.port, 'up')
            if machine.daemon.poll() is not None:
                machine.start_daemon()
            node = self.cluster.node(name)
            node.reap()
            if node.process is None:
                self.cluster.restart(node)
        self.all_go_on()

    def link_down(self):
        """the primary's machine loses its link"""
        primary = self.cluster.wait_primary()
        port = self.machine[primary.name].port
        self.machines.in_hub('link', 'set', port, 'down')
        self.new_client_goes_on()
        self.machines.in_hub('link', 'set', port, 'up')
        self.all_go_on()
        self.cluster.settle()
        return self.complaints()

    def killed_daemon(self):
        """corosync of the primary's machine is killed, and starts again"""
        machine = self.machine[self.cluster.wait_primary().name]
        machine.kill_daemon()
        self.all_go_on()
        machine.start_daemon()
        self.cluster.settle()
        return self.complaints()

    def kill_machine(self, node):
        self.machine[node.name].kill_daemon()
        self.cluster.kill(node)

    def restart_machine(self, node):
        self.machine[node.name].start_daemon()
        self.machine[node.name].wait_for_daemon()
        self.cluster.restart(node)

    def end(self):
        """nothing is lost, nothing is there twice, and all nodes have the same"""
        complaints = self.complaints()
        c = self.cluster
        self.writers.stop()
        c.settle()
        self.readers.stop()
        complaints += self.complaints() + c.stop_all()
        for node in c.nodes:
            complaints += ['%s: %s' % (node.name, line)
                           for line in ledger.check_attempts(node.data, self.writers.ledgers())
                           + ledger.check_sound(node.data)]
        print('   %d acknowledged' % sum(
            entry['end'] == 'ok' for entries in self.writers.ledgers() for entry in entries))
        return complaints + c.converged()

    def close(self):
        self.writers.kill()
        self.readers.kill()
        if self.cluster:
            self.cluster.kill_all()
        self.machines.end()

    FAULTS = ['killed_primary', 'cut_primary', 'cut_replica', 'link_down', 'killed_daemon']


def measure(run, arguments):
    run.begin()
    found = failover_times.measure(
        run.cluster, run.writers, arguments.times, lambda line: print(line, flush=True),
        kill=run.kill_machine, restart=run.restart_machine)
    failover_times.report(
        'machines, corosync with token %d + %d ms, lease %s, %d clients' % (
            arguments.token, arguments.coefficient, arguments.lease, WRITERS), found)
    print('\n'.join(run.end()) or 'nothing was lost')


def main():
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--keep', action='store_true', help='keep what the nodes have')
    parser.add_argument('--times', type=int, metavar='N')
    parser.add_argument('--token', type=int, default=1000)
    parser.add_argument('--coefficient', type=int, default=0)
    parser.add_argument('--lease', default='2s')
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    tally = ledger.Tally()
    directory = tempfile.mkdtemp(prefix='standby-corosync-')
    run = Run(directory, arguments.lease, token=arguments.token,
              coefficient=arguments.coefficient)
    try:
        run.prepare()
        if arguments.times:
            measure(run, arguments)
        elif tally.step(run.begin.__doc__, run.begin):
            for name in Run.FAULTS:
                step = getattr(run, name)
                if not tally.step(step.__doc__, step):
                    run.cluster.show_output()
                    if not tally.step(run.mend.__doc__, run.mend):
                        break
            if not tally.step(run.end.__doc__, run.end):
                run.cluster.show_output()
        elif run.cluster:
            run.cluster.show_output()
    except machines.Unavailable as reason:
        tally.skip('failover with corosync', reason)
    finally:
        run.close()
        if arguments.keep:
            print('kept: %s' % directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if arguments.times:
        sys.stdout.flush()
        os._exit(0)     # threads of clients must not keep the process
    server.summary(tally.passed, tally.failed, tally.skipped)


if __name__ == '__main__':
    main()
