"""Writes references.txt: object records as Pythons write them, and what they refer to.

    references.py                   lines of this Python
    references.py --random N SEED   lines of N random graphs instead
    references.py --mutate FILE N SEED
                                    lines of N damaged records of a file
    references.py --merge FILE...   each record once

Each line: Python and pickler, protocol, name of the case, record in hex, oids. The oids are those
that the pickler was given as ordinary references, in its order; `-` if there are none, `!` if it
wrote something that nobody can read, `?` for damaged records. A last field says what ZODB's
referencesf finds instead, or `error`.

With PYTHONHASHSEED=0 it writes the same each time. Needs zodbpickle, ZODB, BTrees and persistent.
Works with Python 2.7 and 3.6 or later.
"""
from __future__ import print_function

import binascii
import collections
import datetime
import decimal
import io
import pickle
import random
import sys
import types

import zodbpickle
import zodbpickle.fastpickle
import zodbpickle.slowpickle
from BTrees.IIBTree import IISet
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree
from BTrees.OOBTree import OOTreeSet
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.serialize import referencesf

try:
    import cPickle
    import copy_reg
    PY2 = True
except ImportError:
    import copyreg as copy_reg
    PY2 = False

text = type(u'')
binary = zodbpickle.binary

# Classes get their names from a module that everybody can name.
module = types.ModuleType('app')
sys.modules['app'] = module


def named(class_):
    class_.__module__ = 'app'
    setattr(module, class_.__name__, class_)
    return class_


@named
class Plain(object):
    def __init__(self, **kw):
        self.__dict__.update(kw)


@named
class Slots(object):
    __slots__ = 'a', 'b'

    def __getstate__(self):
        return None, {'a': self.a, 'b': self.b}

    def __setstate__(self, state):
        pass


@named
class NewArgs(object):
    def __new__(cls, *args):
        self = object.__new__(cls)
        self.args = args
        return self

    def __getnewargs__(self):
        return self.args


@named
class NewArgsEx(object):
    def __new__(cls, *args, **kw):
        self = object.__new__(cls)
        self.args = args, kw
        return self

    if not PY2:
        def __getnewargs_ex__(self):
            return self.args


@named
class Reduced(object):
    """Gives what it was made with as the result of __reduce__."""

    def __init__(self, *result):
        self.result = result

    def __reduce__(self):
        return self.result


def make(*args):
    return Plain()


make.__module__ = 'app'
module.make = make


@named
class Extension(object):
    pass


@named
class Registered(object):
    pass


copy_reg.pickle(Registered, lambda self: (make, self.args))
copy_reg.add_extension('app', 'Extension', 0x7f)


@named
class Thing(Persistent):
    pass


class OldStyle:
    def __init__(self, *args):
        self.args = args


class OldStyleInitArgs:
    def __init__(self, *args):
        self.args = args

    def __getinitargs__(self):
        return self.args


for class_ in OldStyle, OldStyleInitArgs:
    named(class_)


class Ref(object):
    """Is pickled as a reference; ordinary ones know the oid that is to be found."""

    def __init__(self, pid, oid=None):
        self.pid = pid
        self.oid = oid

    def __hash__(self):
        return 7                    # sets have the same order each time


class Oids(object):
    """Oids to refer to, some of them with bytes that mean something to somebody."""

    SPECIAL = [bytes(bytearray(b)) for b in (
        [0] * 8, [0] * 7 + [1], [0, 0, 0, 0, 0, 0, 0x27, 0x5c], [0, 0, 0, 0, 0, 0, 1, 0xff],
        [0] * 6 + [0x51, 0x2e], [0x7f] * 8, [0] * 7 + [0x80], [0, 0, 0, 0, 1, 0x22, 0x27, 9])]

    def __init__(self, generator=None, lines=False):
        self.random = generator
        self.lines = lines
        self.count = 0

    def next(self):
        self.count += 1
        if self.random is None and self.count <= len(self.SPECIAL):
            return self.SPECIAL[self.count - 1]
        if self.random is None:
            return bytes(bytearray([0] * 5 + [self.count >> 8, self.count & 0xff, 0xd]))
        while True:
            oid = bytes(bytearray(self.random.choice([0, 1, 10, 39, 92, 127, 128, 255, 46, 81])
                                  for _ in range(8)))
            if not self.lines or b'\n' not in oid:
                return oid


def as_zodb(oid):
    """As ZODB of this Python has oids. Python 2 had `str` before it had protocol 3."""
    return binary(oid) if as_zodb.protocol == 3 else oid


class Given(object):
    """A persistent_id, that remembers what was ordinary."""

    def __init__(self, oids, simple):
        self.oids = oids
        self.simple = simple        # protocol 0 can only write strings
        self.found = []
        self.known = {}
        self.kept = []              # so that no other object gets its id()

    def persistent_id(self, obj):
        if isinstance(obj, Ref):
            if obj.oid is not None:
                self.found.append(obj.oid)
            return obj.pid
        if isinstance(obj, Persistent):
            if id(obj) not in self.known:
                self.known[id(obj)] = self.oids.next()
                self.kept.append(obj)
            oid = self.known[id(obj)]
            self.found.append(oid)
            return as_zodb(oid) if self.simple else (as_zodb(oid), type(obj))


def references(oids, simple):
    """One of each form, by name. All the same object can be there more than once."""
    def ordinary(form):
        oid = oids.next()
        return Ref(form(oid), oid)

    refs = collections.OrderedDict()
    refs['oid'] = ordinary(as_zodb)
    if PY2:
        refs['str'] = ordinary(bytes)
    else:
        ascii_oid = b'\0\0\0\0\0\0\x0fA'
        refs['text'] = Ref(ascii_oid.decode('ascii'), ascii_oid)
    if simple:
        return refs
    refs['class'] = ordinary(lambda oid: (as_zodb(oid), Thing))
    refs['old class'] = ordinary(lambda oid: (as_zodb(oid), ('app', 'Thing')))
    refs['tree'] = ordinary(lambda oid: (as_zodb(oid), OOBTree))
    refs['weak'] = Ref(['w', (as_zodb(oids.next()),)])
    refs['weak elsewhere'] = Ref(['w', (as_zodb(oids.next()), 'other')])
    refs['weak, old'] = Ref([as_zodb(oids.next())])
    refs['elsewhere'] = Ref(['n', ('other', as_zodb(oids.next()))])
    refs['class elsewhere'] = Ref(['m', ('other', as_zodb(oids.next()), Thing)])
    return refs


def cases(oids, simple):
    """(name, class metadata, state)"""
    refs = references(oids, simple)
    all_ = list(refs.values())
    one, two = all_[:2]
    yield 'nothing', Thing, None
    yield 'empty', Thing, {}
    for name, ref in refs.items():
        yield name, Thing, {'a': ref}
    yield 'dict', Thing, dict(refs)
    yield 'list', (Thing, None), all_
    yield 'tuple', (Thing, ()), tuple(all_)
    yield 'tuples', (Thing, ()), ((), (one,), (one, two), (two, one, 1), (one, 1, 2, two))
    yield 'same', Thing, [one, [one, {'a': one, 'b': (one, two)}], two, one]
    yield 'same pid', Thing, [Ref(one.pid, one.oid), Ref(one.pid, one.oid)]
    yield 'oid as data', Thing, [one.pid, one, one.pid]
    yield 'class arguments', (Thing, (one, 'a')), two
    yield 'persistent class', (one, None), {'a': two}
    yield 'names', (('app', 'Thing'), None), {'a': one}
    yield 'names and arguments', (('app', 'Thing'), (1, one)), {'a': two}
    yield 'key', Thing, {one: two, (two, 1): 3}
    yield 'many', Thing, [one] + [None] * 1001 + [two]
    yield 'large memo', Thing, [[text(n), one] for n in range(130)] + all_ * 2
    yield 'set', Thing, [set([1, one]), frozenset([two, 'a']), set(), frozenset()]
    yield 'instance', Thing, {'plain': Plain(a=one, b=Plain(c=two)), 'empty': Plain()}
    slots = Slots()
    slots.a, slots.b = one, [two]
    yield 'slots', Thing, slots
    yield 'newargs', Thing, [NewArgs(), NewArgs(one), NewArgs(1, (two,))]
    yield 'newargs_ex', Thing, NewArgsEx(1, one, a=two)
    yield 'reduce', Thing, Reduced(make, (one, 'a'))
    yield 'reduce, state', Thing, Reduced(make, (one,), {'a': two})
    yield 'reduce, items', Thing, [
        Reduced(make, (1,), None, iter([one, 2, two])), Reduced(make, (), one, iter([two])),
        Reduced(make, (1,), None, None, iter([('a', one), (two, 'b')])),
        Reduced(make, (), None, iter([one] * 3), iter([('a', one)]))]
    registered = Registered()
    registered.args = (one, [two])
    yield 'registered', Thing, [registered, registered]
    yield 'extension', Thing, [Extension, Extension, one, Extension()]
    yield 'classes', Thing, [Plain, Thing, one, len, make, dict, two]
    loop = [one]
    loop.append(loop)
    yield 'list in itself', Thing, loop
    loop = {'a': one}
    loop['b'] = loop
    yield 'dict in itself', Thing, loop
    loop = ([one], two)
    loop[0].append(loop)
    yield 'tuple in itself', Thing, loop
    loop = Plain(a=one)
    loop.loop, loop.list = loop, [loop, two]
    yield 'instance in itself', Thing, loop
    yield 'ordered', Thing, collections.OrderedDict([('a', one), ('b', two)])
    counts = collections.defaultdict(list)
    counts['a'].append(one)
    yield 'collections', Thing, [counts, collections.deque([two, 1], 5)]
    yield 'numbers', Thing, [
        0, 1, -1, 255, 256, 65535, 65536, -2**31, 2**31, 2**63, -2**63 - 1, one, 2**2100, -2**2100,
        0.5, -1e300, float('inf'), 1j, True, False, None, decimal.Decimal('1.5'), two]
    yield 'times', Thing, [datetime.datetime(2001, 2, 3, 4, 5), one, datetime.timedelta(1)]
    yield 'strings', Thing, [
        'Q.', 'P12345678\n', '(lp0\n', "it's \"it\"", u'\u20ac\U0001f600\\u0041\n\r\x1a\0',
        as_zodb(bytes(bytearray(range(256)))), one, 'x' * 256, u'\xe9' * 128,
        as_zodb(b'\x80' * 256), bytearray(b'Q.\xff' * 9), as_zodb(b''), '', u'', two]
    yield 'btree', OOBTree, OOBTree([(n, 'v%d' % n) for n in range(9)] + [(9, one)]).__getstate__()
    if not simple:
        tree = OOBTree([(n, refs['class'] if n % 3 else n) for n in range(99)])
        yield 'btree of buckets', OOBTree, tree.__getstate__()
        yield 'bucket', type(tree._firstbucket), tree._firstbucket.__getstate__()
        tree = IOBTree([(n, Thing()) for n in range(10)])
        yield 'btree of things', IOBTree, tree.__getstate__()
        yield 'treeset', OOTreeSet, OOTreeSet(['a', 'b']).__getstate__()
        yield 'set of numbers', IISet, IISet([1, 2, 3]).__getstate__()
        mapping = PersistentMapping({'a': Thing(), 'b': one, 'c': IISet([1])})
        yield 'mapping', PersistentMapping, mapping.__getstate__()
    if PY2 and as_zodb.protocol >= 2:
        # What the standard library makes of a class that it does not know.
        oid = oids.next()
        yield 'binary', Thing, [Ref(binary(oid), oid), Ref((binary(oid), Thing), oid), binary(b'Q')]
    if PY2:
        old = OldStyle()
        old.a = one
        yield 'old style', Thing, [old, old, OldStyleInitArgs(one, two), OldStyleInitArgs()]


class Graph(object):
    """Random values with references in them."""

    def __init__(self, generator, simple):
        self.random = generator
        self.simple = simple
        self.oids = Oids(generator, lines=simple)
        self.refs = list(references(self.oids, simple).values())
        self.made = []
        self.left = generator.choice([3, 10, 40, 150])

    def value(self, hashable=False, depth=0):
        r = self.random
        self.left -= 1
        if self.made and not hashable and r.random() < .15:
            return r.choice(self.made)
        kinds = [self.ref, self.leaf] * 2
        if depth < 12 and self.left > 0:
            kinds += [self.tuple] if hashable else self.CONTAINERS
        value = r.choice(kinds)(depth + 1) if not hashable else r.choice(kinds)(depth + 1, True)
        if not hashable and r.random() < .3:
            self.made.append(value)
        return value

    def ref(self, depth, hashable=False):
        if self.random.random() < .1:
            self.refs += references(self.oids, self.simple).values()
        return self.random.choice(self.refs)

    def leaf(self, depth, hashable=False):
        r = self.random
        return r.choice([
            None, True, r.randrange(-2**70, 2**70), r.randrange(300), r.random(), Plain, Extension,
            'x' * r.choice([0, 8, 9, 256]), u'\xe9\n' * r.randrange(5), as_zodb(self.oids.next()),
            datetime.date(2000 + r.randrange(50), 1, 2), complex(1, r.random())])

    def items(self, depth, hashable=False):
        return [self.value(hashable, depth) for _ in range(self.random.choice([0, 1, 2, 3, 4, 9]))]

    def tuple(self, depth, hashable=False):
        return tuple(self.items(depth, hashable))

    def list(self, depth):
        value = []
        if self.random.random() < .5:
            self.made.append(value)     # it may contain itself
        value += self.items(depth)
        return value

    def dict(self, depth):
        value = {}
        if self.random.random() < .5:
            self.made.append(value)
        for key in self.items(depth, True):
            value[key] = self.value(False, depth)
        return value

    def set(self, depth):
        return self.random.choice([set, frozenset])(self.items(depth, True))

    def instance(self, depth):
        value = Plain()
        self.made.append(value)
        for n in range(self.random.randrange(4)):
            setattr(value, 'a%d' % n, self.value(False, depth))
        return value

    def new(self, depth):
        return self.random.choice([NewArgs, NewArgsEx])(*self.items(depth))

    def reduced(self, depth):
        r = self.random
        result = [make, self.tuple(depth), None, None, None]
        if r.random() < .5:
            result[2] = self.value(False, depth)
        if r.random() < .3:
            result[3] = Items(self.items(depth))
        if r.random() < .3:
            result[4] = Items([(key, self.value(False, depth))
                               for key in self.items(depth, True)])
        return Reduced(*result)

    def collection(self, depth):
        return self.random.choice([
            collections.deque(self.items(depth)),
            collections.OrderedDict((n, v) for n, v in enumerate(self.items(depth)))])

    def old(self, depth):
        value = self.random.choice([OldStyle, OldStyleInitArgs])(*self.items(depth))
        value.more = self.value(False, depth)
        return value

    CONTAINERS = []


class Items(object):
    """An iterator that can be begun again, since each pickler wants one."""

    def __init__(self, items):
        self.items = items
        self.rest = iter(items)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self.rest)
        except StopIteration:
            self.rest = iter(self.items)
            raise

    next = __next__


def containers(self):
    kinds = [self.tuple, self.list, self.dict, self.set, self.instance, self.new, self.reduced,
             self.collection]
    return kinds + [self.old] if PY2 else kinds


Graph.CONTAINERS = property(containers)


def pickled(pickler_class, protocol, given, class_meta, state):
    """A record, as ZODB's ObjectWriter makes it."""
    out = io.BytesIO()
    if isinstance(pickler_class, type):
        pickler_class = type('Pickler', (pickler_class,), {
            'persistent_id': lambda self, obj: given.persistent_id(obj)})
    pickler = pickler_class(out, protocol)
    if not isinstance(pickler_class, type):
        pickler.persistent_id = given.persistent_id
    pickler.dump(class_meta)
    pickler.dump(state)
    return out.getvalue()


def picklers():
    yield 'zodbpickle', zodbpickle.fastpickle.Pickler, 4
    yield 'zodbpickle-slow', zodbpickle.slowpickle.Pickler, 4
    if PY2:
        yield 'pickle', pickle.Pickler, 3
        yield 'cPickle', cPickle.Pickler, 3
    else:
        yield 'pickle', pickle.Pickler, pickle.HIGHEST_PROTOCOL + 1


def hexed(data):
    return binascii.hexlify(data).decode('ascii')


def line(name, pickler, protocol, case, given, class_meta, state):
    try:
        record = pickled(pickler, protocol, given, class_meta, state)
    except (pickle.PicklingError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        # Old protocols and old picklers cannot write everything.
        print('# %s-%d.%d %d %s: %s' % (
            (name,) + sys.version_info[:2] + (protocol, case, error)), file=sys.stderr)
        return
    oids = ' '.join(map(hexed, given.found)) or '-'
    found = found_by_zodb(record)
    if protocol == 0 and not PY2 and (b"Pb'" in record or b'Pb"' in record):
        # It wrote str() of what it was given, and in Python 3 that is "b'..'".
        oids = found = '!'
    fields = ['%s-%d.%d' % ((name,) + sys.version_info[:2]), '%d' % protocol, case,
              hexed(record), oids]
    if found != oids:
        fields.append(found)
    print('\t'.join(fields))


def found_by_zodb(record):
    try:
        return ' '.join(hexed(bytes(oid)) for oid in referencesf(record)) or '-'
    except Exception:
        return 'error'


def mutated(path, count, seed):
    """What ZODB finds in damaged records, where it finds anything.

    On some it never ends: limit the time, and go on with another seed.
    """
    generator = random.Random(seed)
    with open(path) as f:
        records = [binascii.unhexlify(text_line.split('\t')[3]) for text_line in f]
    records = [record for record in records if len(record) < 2000]
    opcodes = b'012()]}aesutldqhpgrj\x85\x86\x87b\x81Rc.NIJKLMFGSTUVXBC\x8a\x8bPQio\x82\x88'
    while count:
        record = bytearray(generator.choice(records))
        for _ in range(generator.choice([1, 1, 2, 5])):
            pos = generator.randrange(len(record))
            kind = generator.randrange(5)
            if kind == 0:
                record[pos] ^= 1 << generator.randrange(8)
            elif kind == 1:
                record.insert(pos, bytearray(opcodes)[generator.randrange(len(opcodes))])
            elif kind == 2:
                del record[pos:pos + generator.randrange(1, 9)]
            elif kind == 3:
                record[pos:pos] = record[pos:pos + generator.randrange(1, 20)]
            else:
                other = bytearray(generator.choice(records))
                record[pos:] = other[generator.randrange(len(other)):]
            if not record:
                break
        found = found_by_zodb(bytes(record))
        if found != 'error':
            print('mutated', '-', seed, hexed(record), '?', found, sep='\t')
            sys.stdout.flush()
            count -= 1


def lines(graphs=None, seed=0):
    for name, pickler, protocols in picklers():
        for protocol in range(protocols):
            simple = protocol == 0
            as_zodb.protocol = protocol
            if graphs is None:
                oids = Oids(lines=simple)
                for case, class_meta, state in cases(oids, simple):
                    given = Given(oids, simple)
                    line(name, pickler, protocol, case, given, class_meta, state)
            else:
                for n in range(graphs):
                    generator = random.Random('%s %d %d %d' % (name, protocol, seed, n))
                    graph = Graph(generator, simple)
                    value = graph.value()
                    given = Given(graph.oids, simple)
                    line(name, pickler, protocol, 'random %d %d' % (seed, n), given, Thing, value)


def merge(paths):
    seen = set()
    for path in paths:
        with open(path) as f:
            for text_line in f:
                record = text_line.split('\t')[3]
                if record not in seen:
                    seen.add(record)
                    print(text_line, end='')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--merge']:
        merge(sys.argv[2:])
    elif sys.argv[1:2] == ['--mutate']:
        mutated(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ['--random']:
        lines(int(sys.argv[2]), int(sys.argv[3]))
    else:
        lines()
