"""What a power cut leaves of a data file, opened by stock ZODB.

    crashed_images.py

`cargo test --test storage_crash` leaves states of the file in `target/tmp/crashed`, each in a
directory: as it was `crashed`, as it is when our server has `opened` it, and in `acknowledged.txt`
what must be found: tid, oid, length and Adler-32 of each record (hyphens: it does not exist).

There are states that ZODB does not open: if a sector of the last batch, of which nobody was told,
never reached the disk, but the end of the file did. It refuses then, as it does if that has happened
to a transaction of its own, and changes nothing; when our server has opened the file, it opens it,
too. It may also open such a file and show that transaction.
"""
import logging
import os
import shutil
import struct
import tempfile
import unittest
import zlib
from binascii import unhexlify

from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import FileStorageError
from ZODB.POSException import POSKeyError

import server

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get('CARGO_TARGET_DIR') or os.path.join(PROJECT, 'target')
IMAGES = os.path.join(TARGET, 'tmp', 'crashed')


class CrashedImages(unittest.TestCase):
    """Each test with the index file that is there, and without."""

    def each(self):
        kinds = sorted(os.listdir(IMAGES)) if os.path.isdir(IMAGES) else []
        if not kinds:
            self.skipTest('no states of crashed files: run cargo test --test storage_crash')
        for kind in kinds:
            for indexed in True, False:
                yield os.path.join(IMAGES, kind), indexed

    def copy(self, image, name, indexed):
        files = os.path.join(image, name)
        # So that errors, which name the file, say which state it is.
        directory = tempfile.mkdtemp(prefix=os.path.basename(image))
        self.addCleanup(shutil.rmtree, directory)
        for name in os.listdir(files):
            if os.path.isdir(os.path.join(files, name)):
                shutil.copytree(os.path.join(files, name), os.path.join(directory, name))
            elif indexed or not name.endswith('.index'):
                shutil.copy(os.path.join(files, name), directory)
        return os.path.join(directory, 'Data.fs')

    def check(self, image, path):
        storage = FileStorage(path, blob_dir=os.path.join(os.path.dirname(path), 'blobs'))
        self.addCleanup(storage.close)
        with open(os.path.join(image, 'acknowledged.txt')) as lines:
            for line in lines:
                tid, oid, length, checksum = line.split()
                if length == '-':
                    with self.assertRaises(POSKeyError, msg=path):
                        storage.loadSerial(unhexlify(oid), unhexlify(tid))
                    continue
                data = storage.loadSerial(unhexlify(oid), unhexlify(tid))
                self.assertEqual(len(data), int(length), path)
                self.assertEqual(zlib.adler32(data), int(checksum), path)
                if storage.is_blob_record(data):
                    storage.loadBlob(unhexlify(oid), unhexlify(tid))

    def test_crashed(self):
        for image, indexed in self.each():
            path = self.copy(image, 'crashed', indexed)
            before = read(path)
            try:
                self.check(image, path)
            except FileStorageError:
                self.assertTrue(ends_torn(before, last_tid(image)), path)
                self.assertEqual(read(path), before, path)

    def test_opened_by_us(self):
        for image, indexed in self.each():
            self.check(image, self.copy(image, 'opened', indexed))


def last_tid(image):
    """The last tid that was acknowledged."""
    with open(os.path.join(image, 'acknowledged.txt')) as lines:
        return max([unhexlify(line.split()[0]) for line in lines], default=b'')


def ends_torn(contents, last):
    """Is there a sector behind the last acknowledged transaction that was not written?"""
    pos = end = 4
    while pos + 23 <= len(contents):
        tid, length = struct.unpack_from('>8sQ', contents, pos)
        if not b'\x01' < tid <= last:
            break
        pos = end = pos + length + 8
    while end < len(contents):
        next_sector = end // 512 * 512 + 512
        if not any(contents[end:next_sector]):
            return True
        end = next_sector
    return False


def read(path):
    with open(path, 'rb') as file:
        return file.read()


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    server.main()
