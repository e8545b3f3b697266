"""Writes the data files beside this script, with real ZODB, and what ZODB says is in them.

    python make.py NAME     e.g. python make.py py311-zodb64

Works with ZODB 5.6 and later on Python 2.7 and 3. Writes, for each VARIANT (plain, packed, voted),
NAME-VARIANT.fs and .fs.index, and NAME-VARIANT.txt with one fact a line:

    end POS TID                         of the last finished transaction
    txn POS TID STATUS USER DESCR EXT   status as a number, texts in hex ("-" if empty)
    rec POS OID TID DATA                in the transaction above
    index OID POS
    before OID BEFORE SERIAL END DATA   or: before OID BEFORE none|error
    serial OID SERIAL DATA              or: serial OID SERIAL error
    tid OID SERIAL                      or: tid OID error

DATA is LENGTH:CRC32, or "none". An error is POSKeyError.
"""

from __future__ import print_function

import base64
import binascii
import os
import shutil
import struct
import sys
import tempfile
import time
import zlib

import pkg_resources
import transaction
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import maxtid
from ZODB.utils import p64
from ZODB.utils import u64

HERE = os.path.dirname(os.path.abspath(__file__))


def hexed(data):
    return binascii.hexlify(data).decode("ascii") or "-"


def summary(data):
    if data is None:
        return "none"
    return "%d:%08x" % (len(data), zlib.crc32(data) & 0xFFFFFFFF)


def store(storage, meta, changes):
    """One transaction; `changes` are (oid, serial, data), with data None to delete."""
    storage.tpc_begin(meta)
    for oid, serial, data in changes:
        if data is None:
            storage.deleteObject(oid, serial, meta)
        else:
            storage.store(oid, serial, data, "", meta)
    storage.tpc_vote(meta)
    return storage.tpc_finish(meta)


def undo(storage, *tids):
    meta = TransactionMetaData(u"undoer", u"undo", {})
    storage.tpc_begin(meta)
    for tid in tids:
        storage.undo(base64.b64encode(tid), meta)
    storage.tpc_vote(meta)
    return storage.tpc_finish(meta)


def objects(storage):
    """Transactions through DB and Connection: real pickles, references, a blob."""
    db = DB(storage)
    connection = db.open()
    root = connection.root()
    root["map"] = PersistentMapping({"a": 1})
    root["garbage"] = PersistentMapping()
    transaction.get().note(u"first objects")
    transaction.commit()
    root["map"]["long"] = u"x" * 20000
    root["blob"] = Blob(b"blob data")
    txn = transaction.get()
    txn.note(u"Gr\xfc\xdfe an alle")
    txn.setUser(u"Zo\xeb")
    txn.setExtendedInfo("tags", [u"long", 1])
    transaction.commit()
    root["map"]["a"] = 2
    del root["garbage"]
    transaction.commit()
    connection.close()


def revisions(storage):
    """Transactions through the storage: undo in all its forms, deletion, nothing at all."""
    store(storage, TransactionMetaData(u"", u"empty", {}), [])
    kept, undone, deleted = p64(1000), p64(1001), p64(70000)
    zero = p64(0)
    meta = TransactionMetaData(u"\u043f\u044f\u0442\u044c", u"", {u"k": b"v"})
    first = store(storage, meta, [(kept, zero, b"(dp1"), (deleted, zero, b"N.")])
    created = store(storage, TransactionMetaData(), [(undone, zero, b"I1\n.")])
    second = store(storage, TransactionMetaData(), [(kept, first, b"I2\n.")])
    third = store(storage, TransactionMetaData(), [(kept, second, b"I3\n.")])
    undo(storage, third)
    undo(storage, created)
    store(storage, TransactionMetaData(), [(deleted, first, None)])
    # Two undos at once give two records of one object in one transaction.
    last = storage.getTid(kept)
    fourth = store(storage, TransactionMetaData(), [(kept, last, b"I4\n.")])
    fifth = store(storage, TransactionMetaData(), [(kept, fourth, b"I5\n.")])
    undo(storage, fifth, fourth)
    store(storage, TransactionMetaData(u"last"), [(p64(1002), zero, b"N.")])


def transactions(path, end):
    """(pos, tid, status, texts, [(pos, oid, tid)]) of all transactions before `end`."""
    with open(path, "rb") as f:
        contents = f.read()
    pos = 4
    while pos < end:
        tid, length, status, ulen, dlen, elen = struct.unpack_from(">8sQcHHH", contents, pos)
        at = pos + 23
        texts = []
        for text_len in (ulen, dlen, elen):
            texts.append(contents[at:at + text_len])
            at += text_len
        records = []
        while at < pos + length:
            oid, serial, _, _, _, data_len = struct.unpack_from(">8s8sQQHQ", contents, at)
            records.append((at, oid, serial))
            at += 42 + (data_len or 8)
        yield pos, tid, ord(status), texts, records
        pos += length + 8


def facts(storage, path):
    """The lines of the .txt file. What the records hold is ZODB's word."""
    yield "end %d %s" % (storage.getSize(), hexed(storage.lastTransaction()))
    tids = []
    for found, txn in zip(transactions(path, storage.getSize()), storage.iterator()):
        pos, tid, status, texts, records = found
        assert tid == txn.tid
        tids.append(tid)
        texts = " ".join(hexed(text) for text in texts)
        yield "txn %d %s %d %s" % (pos, hexed(tid), status, texts)
        for (pos, oid, serial), record in zip(records, txn):
            assert (oid, serial, pos) == (record.oid, record.tid, record.pos)
            yield "rec %d %s %s %s" % (pos, hexed(oid), hexed(serial), summary(record.data))
    for oid in sorted(storage._index.keys()):
        yield "index %s %d" % (hexed(oid), storage._index[oid])
        for tid in tids + [p64(u64(tids[-1]) + 1), maxtid]:
            try:
                found = storage.loadBefore(oid, tid)
                if found is None:
                    found = "none"
                else:
                    data, serial, end = found
                    end = "-" if end is None else hexed(end)
                    found = " ".join([hexed(serial), end, summary(data)])
            except POSKeyError:
                found = "error"
            yield "before %s %s %s" % (hexed(oid), hexed(tid), found)
            try:
                found = summary(storage.loadSerial(oid, tid))
            except POSKeyError:
                found = "error"
            yield "serial %s %s %s" % (hexed(oid), hexed(tid), found)
        try:
            found = hexed(storage.getTid(oid))
        except POSKeyError:
            found = "error"
        yield "tid %s %s" % (hexed(oid), found)


def keep(storage, path, target):
    """Closes the storage after its facts were written; keeps its files."""
    with open(target + ".txt", "w") as out:
        version = pkg_resources.get_distribution("ZODB").version
        print("# ZODB %s, Python %s" % (version, sys.version.split()[0]), file=out)
        for line in facts(storage, path):
            print(line, file=out)
    storage.close()
    shutil.copy(path, target + ".fs")
    shutil.copy(path + ".index", target + ".fs.index")


def main(name):
    for variant in "plain", "packed", "voted":
        directory = tempfile.mkdtemp()
        path = os.path.join(directory, "Data.fs")
        storage = FileStorage(path, blob_dir=os.path.join(directory, "blobs"))
        target = os.path.join(HERE, "%s-%s" % (name, variant))
        if variant == "packed":
            objects(storage)
            storage.pack(time.time(), referencesf)
            storage.close()
            storage = FileStorage(path)
            revisions(storage)
        else:
            objects(storage)
            revisions(storage)
        keep(storage, path, target)
        if variant == "voted":
            # As a crash between vote and finish leaves it. The index is from before.
            storage = FileStorage(path)
            meta = TransactionMetaData(u"unlucky", u"voted", {})
            storage.tpc_begin(meta)
            storage.store(p64(2000), p64(0), b"N.", "", meta)
            storage.tpc_vote(meta)
            storage._file.flush()
            shutil.copy(path, target + ".fs")
            storage.tpc_abort(meta)
            storage.close()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
