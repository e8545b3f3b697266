"""ZODB of any version has its turn with a data file that standbyd serves in between.

    file_turn.py PATH TURN

Opens the file (creates it in turn 0), reads all that is in it, and leaves a mark. Ends with status
0 if all that it and the server's clients wrote was there.
"""
from __future__ import print_function, unicode_literals

import sys

import transaction
import ZODB
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf
from ZODB.utils import z64


def main(path, turn):
    storage = FileStorage(path)
    last = z64
    records = 0
    for txn in storage.iterator():
        assert txn.tid > last, (txn.tid, last)
        last = txn.tid
        for record in txn:
            assert record.tid == txn.tid
            records += 1
    assert last == storage.lastTransaction()
    reached = read_all(storage) if turn else set()
    assert len(reached) <= len(storage) <= records
    db = ZODB.DB(storage)
    connection = db.open()
    root = connection.root()
    assert root.get('turns', []) == list(range(turn)), root.get('turns')
    if turn:
        assert root['counter']() > 0, 'the clients of the server have left nothing'
    root['turns'] = list(range(turn + 1))
    transaction.commit()
    db.close()


def read_all(storage):
    """Load everything that can be reached from the root."""
    reached = set()
    todo = [z64]
    while todo:
        oid = todo.pop()
        if oid not in reached:
            reached.add(oid)
            data, _ = storage.load(oid, '') if hasattr(storage, 'load') else storage.loadBefore(
                oid, b'\x7f' + b'\xff' * 7)[:2]
            todo += referencesf(data)
    return reached


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
