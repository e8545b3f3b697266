"""All that a client does in its life, for any Python that ZEO 5 or 6 runs on.

    life.py alone PORT WHO DIRECTORY
    life.py meet PORT WHO OTHER ...

`alone` is for a client that has a server for itself, with its blobs in `DIRECTORY/blobs`. It says
`restart` when the server is to be restarted, and goes on when it is told so by a line. `meet` is
for one of several clients of one server: it reads what the others wrote, and undoes it, once all
have said `ready` and were given a line. Ends with status 0 if all went well.
"""
from __future__ import print_function, unicode_literals

import logging
import os
import sys
import time

import transaction
import ZODB
from BTrees.Length import Length
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import Blob
from ZODB.POSException import ConflictError, POSKeyError, UndoError
from ZODB.utils import maxtid, p64, u64

import smoke
from smoke import connect, until

BLOB = b'\x00\xff\r\n' * 100000     # more than one message when it is streamed


def alone(port, who, directory):
    smoke.main(port, who)
    address = '127.0.0.1', port
    cache = os.path.join(directory, 'cache')
    one = open_database(address, blob_dir=cache)
    two = open_database(
        address, blob_dir=os.path.join(directory, 'blobs'), shared_blob_dir=True)
    undo(address, one, two, who)
    history(one, who)
    iteration(one, who)
    blobs(one, two, who)
    pack(address, one, two, who)
    restart(one, two, who)
    one.close()
    two.close()


def open_database(address, **options):
    return ZODB.DB(ClientStorage(
        address, wait_timeout=30, min_disconnect_poll=.1, max_disconnect_poll=.2, **options))


def commit(connection, user, note, **extension):
    t = connection.transaction_manager.get()
    t.user, _ = user, t.note(note)
    for key, value in extension.items():
        t.setExtendedInfo(key, value)
    connection.transaction_manager.commit()


def undo_entry(db, note):
    """What undoInfo says of the one transaction with that note."""
    found = [entry for entry in db.undoInfo(0, 10000) if text(entry['description']) == note]
    assert len(found) == 1, (note, found)
    return found[0]


def text(value):
    return value if isinstance(value, type('')) else value.decode('utf-8')


def do_undo(db, *ids):
    """Undo in one transaction."""
    manager = transaction.TransactionManager()
    t = manager.begin()
    t.user, _ = 'undoer', t.note('undo of %d' % len(ids))
    try:
        db.undoMultiple(list(ids), t)
        manager.commit()
    except Exception:
        manager.abort()
        raise


def undo(address, one, two, who):
    a, b = connect(one), connect(two)
    a.root()['undo'] = PersistentMapping(n=0)
    commit(a, 'creator', 'created')
    until(b, lambda: 'undo' in b.root())
    mapping, other = a.root()['undo'], b.root()['undo']
    for n in 1, 2, 3:
        mapping['n'] = n
        commit(a, 'editor', 'n is %d' % n, who=who, number=n)
    until(b, lambda: other['n'] == 3)
    entry = undo_entry(one, 'n is 3')
    assert text(entry['user_name']) == 'editor', entry
    assert entry['who'] == who and entry['number'] == 3, entry
    assert abs(entry['time'] - time.time()) < 600

    # Of one transaction, of one that is not the last, and of two at once.
    do_undo(one, entry['id'])
    until(a, lambda: mapping['n'] == 2)
    until(b, lambda: other['n'] == 2)
    fails(UndoError, do_undo, one, undo_entry(one, 'n is 1')['id'])
    do_undo(two, undo_entry(two, 'n is 2')['id'], undo_entry(two, 'n is 1')['id'])
    until(a, lambda: mapping['n'] == 0)
    until(b, lambda: other['n'] == 0)

    # Of a creation nothing is left; and an undo can be undone.
    a.root()['second'] = second = PersistentMapping(x=1)
    commit(a, 'creator', 'second created')
    until(b, lambda: 'second' in b.root())
    do_undo(one, undo_entry(one, 'second created')['id'])
    until(a, lambda: 'second' not in a.root())
    until(b, lambda: 'second' not in b.root())
    fails(POSKeyError, load_without_cache, address, second._p_oid)
    do_undo(one, one.undoInfo(0, 1)[0]['id'])
    until(b, lambda: 'second' in b.root() and b.root()['second']['x'] == 1)

    # The filter, and the limits.
    everything = one.undoInfo(0, 10000)
    assert [e['id'] for e in one.undoInfo(0, -3)] == [e['id'] for e in everything[:3]]
    assert [e['id'] for e in one.undoInfo(2, 4)] == [e['id'] for e in everything[2:4]]
    by_number = one.undoInfo(0, 10000, {'number': 2})
    assert [text(e['description']) for e in by_number] == ['n is 2'], by_number
    a.close()
    b.close()


def load_without_cache(address, oid):
    storage = ClientStorage(address, wait_timeout=30)
    try:
        return storage.loadBefore(oid, maxtid)
    finally:
        storage.close()


def fails(error, function, *arguments):
    try:
        result = function(*arguments)
    except error:
        return
    raise AssertionError('no %s, but %r' % (error.__name__, result))


def history(db, who):
    connection = connect(db)
    mapping = connection.root()['undo']
    tids = []
    for n in 100, 101, 102:
        mapping['n'] = n
        commit(connection, 'historian', 'n is %d' % n, who=who)
        tids.append(mapping._p_serial)
    entries = db.history(mapping._p_oid, 3)
    assert [entry['tid'] for entry in entries] == tids[::-1], (entries, tids)
    assert [text(e['description']) for e in entries] == ['n is 102', 'n is 101', 'n is 100']
    assert all(e['who'] == who and e['size'] > 0 for e in entries), entries
    assert len(db.history(mapping._p_oid, 1)) == 1
    for n, tid in zip((100, 101, 102), tids):
        old = db.open(transaction.TransactionManager(), before=successor(tid))
        assert old.root()['undo']['n'] == n
        old.close()
    data = db.storage.loadSerial(mapping._p_oid, tids[1])
    _, start, end = db.storage.loadBefore(mapping._p_oid, tids[2])
    assert (start, end) == (tids[1], tids[2])
    assert data == db.storage.loadBefore(mapping._p_oid, tids[2])[0]
    connection.close()


def successor(tid):
    return p64(u64(tid) + 1)


def iteration(db, who):
    storage = db.storage
    tids, notes, undone = [], [], 0
    for t in storage.iterator():
        tids.append(t.tid)
        notes.append(text(t.description))
        if notes[-1].startswith('n is'):
            assert t.extension['who'] == who
        last = {}       # an undo of several transactions writes an object several times
        for record in t:
            assert record.tid == t.tid
            if record.data_txn is not None:
                assert record.data_txn < t.tid
                undone += 1
            last[record.oid] = record.data
        for oid, data in last.items():
            if data is not None:
                assert storage.loadSerial(oid, t.tid) == data
    assert tids == sorted(set(tids)) and tids[-1] == storage.lastTransaction()
    assert undone >= 2, undone
    first = notes.index('n is 1')
    assert notes[first:first + 4] == ['n is 1', 'n is 2', 'n is 3', 'undo of 1']
    part = [t.tid for t in storage.iterator(tids[first], tids[first + 3])]
    assert part == tids[first:first + 4]

    seen, next_ = {}, None
    while True:
        oid, tid, data, next_ = storage.record_iternext(next_)
        seen[oid] = data, tid
        if next_ is None:
            break
    assert len(seen) >= 6
    for oid, (data, tid) in seen.items():
        assert storage.loadBefore(oid, maxtid)[:2] == (data, tid)


def content(blob):
    with blob.open('r') as f:
        return f.read()


def blobs(streaming, sharing, who):
    a, b = connect(streaming), connect(sharing)
    a.root()['blob'] = Blob(BLOB)
    a.root()['empty'] = Blob()
    commit(a, 'blobs', 'streamed', who=who)
    until(b, lambda: 'blob' in b.root())
    assert content(b.root()['blob']) == BLOB
    assert content(b.root()['empty']) == b''
    with b.root()['blob'].open('w') as f:
        f.write(b'shared')
    commit(b, 'blobs', 'shared', who=who)
    until(a, lambda: content(a.root()['blob']) == b'shared')
    b.root()['other'] = Blob(b'other')
    commit(b, 'blobs', 'two', who=who)
    until(a, lambda: 'other' in a.root())
    assert content(a.root()['other']) == b'other'

    # A file of its own for each revision, in the one place where both look.
    with a.root()['blob'].open('w') as f:
        f.write(b'again')
    commit(a, 'blobs', 'again', who=who)
    do_undo(streaming, undo_entry(streaming, 'again')['id'])
    until(b, lambda: content(b.root()['blob']) == b'shared')
    until(a, lambda: content(a.root()['blob']) == b'shared')

    # In a conflict nothing of the loser stays.
    with a.root()['blob'].open('w') as f:
        f.write(b'winner')
    with b.root()['blob'].open('w') as f:
        f.write(b'loser')
    commit(a, 'blobs', 'winner', who=who)
    fails(ConflictError, commit, b, 'blobs', 'loser')
    b.transaction_manager.abort()
    until(b, lambda: content(b.root()['blob']) == b'winner')
    a.close()
    b.close()


def pack(address, streaming, sharing, who):
    connection = connect(streaming)
    root = connection.root()
    mapping = root['undo']
    old = mapping._p_serial
    mapping['n'] = 1000
    garbage = root['second']._p_oid
    del root['second']
    blob_oid, blob_serial = root['other']._p_oid, root['other']._p_serial
    old_blob = sharing.storage.fshelper.getBlobFilename(blob_oid, blob_serial)
    with root['other'].open('w') as f:
        f.write(b'new')
    commit(connection, 'packer', 'before the pack', who=who)
    assert os.path.exists(old_blob)
    streaming.storage.loadSerial(mapping._p_oid, old)
    streaming.pack()
    clean = open_database(address)
    fails(POSKeyError, clean.storage.loadSerial, mapping._p_oid, old)
    fails(POSKeyError, clean.storage.loadBefore, garbage, maxtid)
    assert not os.path.exists(old_blob), old_blob
    assert len(clean.history(mapping._p_oid, 100)) == 1
    assert list(clean.undoInfo(0, 100)) == []
    clean.close()
    connection.transaction_manager.begin()
    assert content(root['other']) == b'new' and content(root['blob']) == b'winner'
    mapping['n'] = 1001
    commit(connection, 'packer', 'after the pack', who=who)
    do_undo(sharing, undo_entry(sharing, 'after the pack')['id'])
    until(connection, lambda: mapping['n'] == 1000)
    connection.close()


def restart(one, two, who):
    a, b = connect(one), connect(two)
    mapping = a.root()['undo']
    b.root()['undo']['n'] = 2000
    commit(b, who, 'before the restart')
    until(a, lambda: mapping['n'] == 2000)
    print('restart')
    sys.stdout.flush()
    sys.stdin.readline()
    mapping['n'] = 2001
    deadline = time.time() + 30
    while True:
        try:
            commit(a, who, 'after the restart')
            break
        except ClientDisconnected:
            assert time.time() < deadline
            a.transaction_manager.abort()
            time.sleep(.05)
            patiently(a)
            mapping['n'] = 2001
    patiently(b)
    until(b, lambda: b.root()['undo']['n'] == 2001)
    assert content(a.root()['blob']) == content(b.root()['blob']) == b'winner'
    a.root()['late'] = Blob(b'late')
    commit(a, who, 'a blob after the restart')
    until(b, lambda: 'late' in b.root())
    assert content(b.root()['late']) == b'late'
    a.close()
    b.close()


def patiently(connection):
    """Begin a transaction once the server is there again."""
    deadline = time.time() + 30
    while True:
        try:
            connection.transaction_manager.begin()
            return
        except ClientDisconnected:
            assert time.time() < deadline
            time.sleep(.05)


def meet(port, who, others):
    address = '127.0.0.1', port
    db = open_database(address)
    connection = connect(db)
    smoke.change(connection, lambda root: root.setdefault('visitors', PersistentMapping()))
    smoke.change(connection, lambda root: root['visitors'].__setitem__(
        who, PersistentMapping(name=who, count=Length(0))))
    visitor = connection.root()['visitors'][who]
    visitor['n'] = 1
    commit(connection, who, 'mine: ' + who, who=who)
    visitor['n'] = 2
    commit(connection, who, 'to be undone: ' + who, who=who)
    print('ready')
    sys.stdout.flush()
    sys.stdin.readline()

    # What the others committed was acknowledged to them; it comes here in its own time.
    victim = others[others.index(who) - 1]
    until(connection, lambda: all(
        'n' in connection.root()['visitors'].get(other, ()) for other in others))
    until(connection, lambda: connection.root()['visitors'][victim]['n'] == 2)
    entries = {text(entry['description']): entry for entry in db.undoInfo(0, 10000)}
    notes = {text(t.description): t for t in db.storage.iterator()}
    for other in others:
        theirs = connection.root()['visitors'][other]
        assert theirs['name'] == other, (other, theirs['name'])
        entry = entries['mine: ' + other]
        assert entry['who'] == other, entry
        assert notes['mine: ' + other].extension['who'] == other
        assert other in [text(e['who']) for e in db.history(theirs._p_oid, 10) if 'who' in e]
    # Each is undone by the one who comes behind it in the list, and by nobody else.
    do_undo(db, entries['to be undone: ' + victim]['id'])
    until(connection, lambda: connection.root()['visitors'][victim]['n'] == 1)
    until(connection, lambda: visitor['n'] == 1)
    for other in others:
        smoke.change(connection, lambda root: root['visitors'][other]['count'].change(1))
    connection.close()
    db.close()


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    if sys.argv[1] == 'alone':
        alone(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        # Python 2 has bytes here.
        names = [text(name) for name in sys.argv[3:]]
        meet(int(sys.argv[2]), names[0], names[1:])
