"""Writes pickles.txt: pickles as ZODB and ZEO of several Pythons write them, and their values.

    python2.7 pickles.py > pickles.txt; python3 pickles.py >> pickles.txt

Both need zodbpickle. Each line: Python and pickler, protocol, pickle in hex, value. Values: None,
True, False, decimal integers, `l` long integers (little-endian), `f` floats (8 bytes), `u` text
(UTF-8), `b` bytes, `s` str of Python 2; all of these in hex; (tuples), [lists], {dicts}, and
<paths> of ZopeUndo.Prefix.Prefix.
"""
from __future__ import print_function

import binascii
import pickle
import struct
import sys
import types

import zodbpickle
import zodbpickle.pickle

PY2 = sys.version_info[0] == 2
text = type(u'')
integers = (int, long) if PY2 else (int,)  # noqa: F821

# Stands for the class of Zope's undo page; only its name and attributes matter.
module = types.ModuleType('ZopeUndo.Prefix')


class Prefix(object):
    def __init__(self, path):
        self.length = len(path)
        self.path = path


Prefix.__module__ = module.__name__
module.Prefix = Prefix
sys.modules['ZopeUndo'] = types.ModuleType('ZopeUndo')
sys.modules['ZopeUndo.Prefix'] = module

shared = ['a', ('b', 1)]
values = [
    {},
    {'answer': 42},
    {u'text': u'jos\xe9 \u20ac \U0001f600', u'lines': u'a\n\\u0041\\n\r\x00\x1a'},
    {'quotes': 'it\'s "quoted"\n\\\t\r', 'empty': ''},
    {'bytes': zodbpickle.binary(bytes(bytearray(range(256)))), 'none': zodbpickle.binary(b'')},
    {'long': 'x' * 300, 'long text': u'\xe9' * 200},
    {'ints': [0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -256, -2**31, -2**31 - 1]},
    {'longs': [2**48, -2**48, 2**63 - 1, -2**63, 2**63, -2**63 - 1, 2**64, 2**100]},
    {'floats': [0.0, -1.5, 1e300, 5e-324, float('inf')]},
    {'constants': (None, True, False)},
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [[]], {}, {1: {}}],
    {'shared': shared, 'again': shared, 'and': (shared, shared)},
    [1] * 1001,
    [Prefix(['', 'site']), Prefix(['', 'acl bob'])],
]


def hexed(data):
    return binascii.hexlify(data).decode('ascii')


def show(value, str_is='s'):
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, zodbpickle.binary):
        return str_is[-1:] + hexed(bytes(value))
    if isinstance(value, integers):
        if -2**63 <= value < 2**63:
            return '%d' % value
        size = 8
        while not -2**(8 * size - 1) <= value < 2**(8 * size - 1):
            size += 1
        return 'l' + hexed(bytes(bytearray(value >> 8 * i & 255 for i in range(size))))
    if isinstance(value, float):
        return 'f' + hexed(struct.pack('>d', value))
    if isinstance(value, text):
        return 'u' + hexed(value.encode('utf-8'))
    if isinstance(value, bytes):
        return 's' + hexed(value)
    if isinstance(value, Prefix):
        return '<%s>' % ' '.join(show(item, str_is) for item in value.path)
    if isinstance(value, dict):
        return '{%s}' % ' '.join(
            show(item, str_is) for pair in value.items() for item in pair)
    form = '(%s)' if isinstance(value, tuple) else '[%s]'
    return form % ' '.join(show(item, str_is) for item in value)


def lines(name, dumps, protocols):
    for protocol in protocols:
        # From protocol 4 on classes are named by an opcode that no ZEO client sends.
        for value in values if protocol < 4 else values[:-1]:
            # Only with protocol 3 does Python 2 remember what is `zodbpickle.binary`.
            str_is = 's' if PY2 and protocol < 3 else 'b'
            print('%s-%d.%d' % ((name,) + sys.version_info[:2]), protocol,
                  hexed(dumps(value, protocol)), show(value, str_is), sep='\t')


lines('zodbpickle', zodbpickle.pickle.dumps, range(4))
if not PY2:
    lines('pickle', pickle.dumps, range(5))
