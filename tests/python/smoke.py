"""What one client does in a first hour, for any Python that ZEO 5 or 6 runs on.

    smoke.py PORT ROUND

Uses shared objects, so that clients of several Pythons can do so at the same time. Ends with
status 0 if all went well.
"""
from __future__ import print_function, unicode_literals

import logging
import sys
import time

import transaction
import ZODB
from BTrees.IIBTree import IIBTree
from BTrees.Length import Length
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZODB.POSException import ConflictError, POSKeyError, ReadOnlyError
from ZODB.utils import p64

MANY = 40               # increments of the shared counter


def main(port, who):
    address = '127.0.0.1', port
    one = ZODB.DB(ClientStorage(address, wait_timeout=30))
    two = ZODB.DB(ClientStorage(address, wait_timeout=30))
    write_and_read(one, two, who)
    conflict(one, two, who)
    shared_counter(one, who)
    errors(one.storage)
    assert one.storage.server_status()['connections'] >= 2
    one.close()
    two.close()
    read_only(address, who)


def connect(db):
    return db.open(transaction.TransactionManager())


def until(connection, condition):
    """Begin transactions until *condition* holds: invalidations take their time."""
    deadline = time.time() + 90
    while not condition():
        assert time.time() < deadline, condition
        time.sleep(.01)
        connection.transaction_manager.begin()


def change(connection, function):
    """Apply *function* to the root until there is no conflict."""
    for _ in range(100):
        connection.transaction_manager.begin()
        function(connection.root())
        try:
            connection.transaction_manager.commit()
            return
        except ConflictError:
            connection.transaction_manager.abort()
    raise AssertionError('a conflict each time')


def write_and_read(one, two, who):
    a, b = connect(one), connect(two)

    def create(root):
        root[who] = PersistentMapping(text='\xe4\u20ac', number=1 << 40, binary=b'\x00\xff' * 4)
        root[who]['tree'] = IIBTree({i: i * i for i in range(500)})
        root[who]['large'] = PersistentMapping(data='x' * 3000000)

    change(a, create)
    until(b, lambda: who in b.root())
    mine = b.root()[who]
    assert mine['text'] == '\xe4\u20ac' and mine['number'] == 1 << 40
    assert mine['binary'] == b'\x00\xff' * 4
    assert sum(mine['tree'].values()) == sum(i * i for i in range(500))
    assert len(mine['large']['data']) == 3000000
    mine['number'] = 7
    b.transaction_manager.commit()
    until(a, lambda: a.root()[who]['number'] == 7)
    a.close()
    b.close()


def conflict(one, two, who):
    a, b = connect(one), connect(two)
    a.root()[who]['tree'][1000] = b.root()[who]['tree'][1001] = 1
    for connection in a, b:
        connection.transaction_manager.commit()     # of b: resolved here, in the client
    until(a, lambda: 1001 in a.root()[who]['tree'])
    assert 1000 in b.root()[who]['tree']
    a.root()[who]['number'] = 8
    b.root()[who]['number'] = 9
    a.transaction_manager.commit()
    try:
        b.transaction_manager.commit()
    except ConflictError:
        b.transaction_manager.abort()
    else:
        raise AssertionError('no conflict')
    until(b, lambda: b.root()[who]['number'] == 8)
    a.close()
    b.close()


def shared_counter(db, who):
    """Counted by all clients at the same time; conflicts are resolved or retried."""
    connection = connect(db)
    change(connection, lambda root: root.setdefault('counter', Length()))
    for _ in range(MANY):
        change(connection, lambda root: root['counter'].change(1))
    connection.close()


def errors(storage):
    for call in (lambda: storage.load(p64(1 << 50)),
                 lambda: storage.loadSerial(p64(0), p64(1))):
        try:
            call()
        except POSKeyError:
            pass
        else:
            raise AssertionError('no POSKeyError')


def read_only(address, who):
    db = ZODB.DB(ClientStorage(address, read_only=True, wait_timeout=30))
    connection = connect(db)
    assert connection.root()[who]['number'] == 8
    connection.root()[who]['number'] = 10
    try:
        connection.transaction_manager.commit()
    except ReadOnlyError:
        connection.transaction_manager.abort()
    else:
        raise AssertionError('could write')
    connection.close()
    db.close()


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    main(int(sys.argv[1]), sys.argv[2])
