"""Files that execute code when unpickled. Each would create a folder, the canary."""

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import torch

HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
NAMESPACE = b'cargparse\nNamespace\n'


def text(value):
    encoded = str(value).encode()
    return b'X' + len(encoded).to_bytes(4, 'little') + encoded


def named(path):
    module, _, name = path.rpartition('.')
    return f'c{module}\n{name}\n'.encode()


def call(function, *arguments):
    return function + b'(' + b''.join(arguments) + b'tR'


def dict_of(**items):
    return b'}' + b''.join(text(key) + value + b's' for key, value in items.items())


def empty_instance(kind):
    return kind + b')\x81'


def getattr_of(target, *names):
    for name in names:
        target = call(named('__builtin__.getattr'), target, text(name))
    return target


def exec_of(function, *names):
    """Reach exec from a function, or from an attribute of a class, with getattr only."""
    scope = getattr_of(function, *names, '__globals__', '__getitem__')
    return call(getattr_of(call(scope, text('__builtins__')), '__getitem__'), text('exec'))


def encoded(content):
    """Bytes, as Python stores them in this protocol."""
    return call(named('_codecs.encode'), text(content.decode('latin1')), text('latin1'))


def calling_history(function, argument):
    """A HistoryBuffer whose ``__setstate__`` calls a function.

    The method ends with ``self._statistics_methods.update(state['statistics_methods'])``, and
    instance attributes have precedence over class attributes.
    """
    methods = empty_instance(HISTORY) + dict_of(update=function) + b'b'
    hooked = dict_of(
        _statistics_methods=methods, _set_default_statistics=named('collections.OrderedDict')
    )
    last = dict_of(statistics_methods=argument)
    return empty_instance(HISTORY) + hooked + b'b' + last + b'b'


def zipped(body, folder='archive', name='data.pkl'):
    """A file in torch.save's format whose pickle consists of these opcodes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(f'{folder}/{name}', b'\x80\x02' + body + b'.')
        archive.writestr(f'{folder}/byteorder', 'little')
        archive.writestr(f'{folder}/version', '3\n')
    return file.getvalue()


def with_another_table(content):
    """Add a second table of contents, with one harmless entry, to a file in torch.save's format.

    The result has two zip64 end records and one locator after them. torch follows the locator to
    the first end record. Python's zipfile uses the end record directly before the locator.
    """
    end = content.rfind(b'PK\5\6')
    number, size, start = struct.unpack('<HII', content[end + 10 : end + 20])
    if start == 0xFFFFFFFF or number == 0xFFFF or b'PK\6\6' in content:
        large = content.rfind(b'PK\6\6')
        number, size, start = struct.unpack('<QQQ', content[large + 32 : large + 56])
    made = content[: start + size]
    first = len(made)
    made += _large_end(number, size, start)
    name, text_ = b'archive/version', b'3\n'
    sums = struct.pack('<IIIHH', zlib.crc32(text_), 2, 2, len(name), 0)
    entry = len(made)
    made += b'PK\3\4' + struct.pack('<HHHHH', 20, 0, 0, 0, 0) + sums + name + text_
    table = b'PK\1\2' + struct.pack('<HHHHHH', 20, 20, 0, 0, 0, 0) + sums
    table += struct.pack('<HHHII', 0, 0, 0, 0, entry) + name
    place = len(made)
    made += table + _large_end(1, len(table), place)
    made += b'PK\6\7' + struct.pack('<IQI', 0, first, 1)
    return (
        made + b'PK\5\6' + struct.pack('<HHHHIIH', 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )


def _large_end(number, size, start):
    return b'PK\6\6' + struct.pack('<QHHIIQQQQ', 44, 45, 45, 0, 0, number, number, size, start)


def zip_file(path, *arguments):
    Path(path).write_bytes(zipped(*arguments))


def payloads(canary):
    """Opcodes that create the canary folder unless they are rejected, by attack."""
    mkdir = call(named('os.mkdir'), text(canary))
    source = text(f'__import__("os").mkdir({str(canary)!r})')
    command = text(f'mkdir {canary}')
    return {
        'os.system': call(named('os.system'), command),
        'posix.system': call(named('posix.system'), command),
        'os.mkdir': mkdir,
        'subprocess.call': call(
            named('subprocess.call'), b'(' + text('mkdir') + text(canary) + b't'
        ),
        'builtins.eval': call(named('__builtin__.eval'), source),
        'builtins.exec': call(named('__builtin__.exec'), source),
        'python3 name of exec': call(named('builtins.exec'), source),
        'runpy': call(named('runpy._run_code'), source, b'}'),
        'functools.partial': call(
            call(named('functools.partial'), named('os.mkdir'), text(canary))
        ),
        'operator.methodcaller': call(
            call(named('operator.methodcaller'), text('mkdir'), text(canary)),
            call(named('importlib.import_module'), text('os')),
        ),
        'copyreg': call(named('copy_reg._reconstructor'), named('os.mkdir'), NAMESPACE, b'N')
        + b'0' + mkdir,
        'torch.load': call(named('torch.storage._load_from_bytes'), encoded(zipped(mkdir))),
        'torch.hub': call(named('torch.hub.load_state_dict_from_url'), text('file:///nowhere')),
        'torch.jit': call(named('torch.jit.load'), text('nowhere')),
        'numpy.load': call(named('numpy.load'), text('nowhere'), b'N', b'\x88'),
        'numpy exec': call(named('numpy.testing._private.utils.runstring'), source, b'}'),
        'getattr of a class': call(exec_of(named('collections.Counter'), '__init__'), source),
        'getattr of a stand-in': call(exec_of(HISTORY, '__init__'), source),
        'getattr of a tensor function': call(
            exec_of(named('torch._utils._rebuild_tensor_v2')), source
        ),
        'state setter of a history buffer': calling_history(named('__builtin__.exec'), source),
        'state setter, exec by getattr': calling_history(exec_of(HISTORY, '__init__'), source),
        'statistics of all history buffers': empty_instance(HISTORY)
        + dict_of(
            statistics_methods=dict_of(min=text('poisoned')),
            _log_history=b'](K\x01e',
            _count_history=b'](K\x01e',
        )
        + b'b',
        'state setter in the state': empty_instance(NAMESPACE)
        + dict_of(__setstate__=named('os.mkdir'))
        + b'b'
        + text(canary)
        + b'b',
        'method in the state': empty_instance(NAMESPACE)
        + dict_of(append=named('os.mkdir'))
        + b'b'
        + text(canary)
        + b'a',
        'attributes of a class': NAMESPACE
        + b'N' + dict_of(__init__=named('os.mkdir')) + b'\x86b0' + call(NAMESPACE, text(canary)),
        'attributes of a function': named('torch._utils._rebuild_tensor_v2')
        + b'N' + dict_of(__code__=source) + b'\x86b',
        'new object of a function': named('os.mkdir') + b'(' + text(canary) + b't\x81',
        'new object with keywords': named('os.mkdir') + b'(' + text(canary) + b't}\x92',
        'INST': b'(' + text(canary) + b'ios\nmkdir\n',
        'OBJ': b'(' + named('os.mkdir') + text(canary) + b'o',
        'STACK_GLOBAL': text('os') + text('mkdir') + b'\x93(' + text(canary) + b'tR',
        'EXT1': b'\x82\xf0(' + text(canary) + b'tR',
        'name with dots': call(text('os') + text('path.os.mkdir') + b'\x93', text(canary)),
        'persistent id': b'('
        + text('storage') + named('os.mkdir') + text('0') + text('cpu') + b'K\x01tQ',
        'persistent module': b'('
        + text('module') + named('os.mkdir') + text(canary) + source + b'tQ',
        'NumPy scalar of an object': call(
            named('numpy.core.multiarray.scalar'), call(named('numpy.dtype'), text('O8')), mkdir
        ),
        'NumPy array of objects': call(
            named('numpy.core.multiarray._reconstruct'),
            named('numpy.ndarray'), b'(K\x00t', text('b'),
        )
        + b'(K\x01(K\x01t' + call(named('numpy.dtype'), text('O8')) + b'\x89](' + mkdir + b'etb',
    }  # fmt: skip


def array_of_pointers(kind):
    """A NumPy array whose dtype has an object field, with bytes of the file as pointers."""
    objects = call(named('numpy.dtype'), text('O8'))
    field = b'}' + text('a') + objects + b'K\x00\x86s'
    state = b'(K\x03' + text('|') + b'N' + text('a') + b'\x85' + field + b'K\x08K\x01K\x00t'
    dtype = call(named('numpy.dtype'), text(kind), b'\x89', b'\x88') + state + b'b'
    empty = call(
        named('numpy.core.multiarray._reconstruct'),
        named('numpy.ndarray'), b'(K\x00t', text('b'),
    )  # fmt: skip
    return empty + b'(K\x01(K\x01t' + dtype + b'\x89' + encoded(b'AAAAAAAA') + b'tb'


def doubled(times):
    """A nested pair of identical pairs: a few bytes whose text fills the memory."""
    # torch's reader also accepts all of these opcodes
    return b']' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(times))


def bombs():
    """Opcodes that take excessive time or memory if they are executed."""
    history = dict_of(_log_history=doubled(40), _count_history=doubled(40))
    return {
        'call of a long text': doubled(40) + b')R',
        'new object of a long text': doubled(40) + b')\x81',
        'history of many places': empty_instance(HISTORY) + history + b'b',
        'bytes of a number': call(named('__builtin__.bytearray'), b'J\xff\xff\xff\x7f'),
        'nested lists': b']' * 100_000 + b'a' * 99_999,
    }


PLACES = {
    'top': lambda payload: payload,
    'state_dict': lambda payload: dict_of(state_dict=dict_of(**{'stem.conv.weight': payload})),
    'args': lambda payload: dict_of(
        state_dict=b'}',
        args=empty_instance(NAMESPACE) + dict_of(deep=b'](' + payload + b'e') + b'b',
    ),
    'message_hub': lambda payload: dict_of(
        state_dict=b'}',
        message_hub=empty_instance(HISTORY) + dict_of(_log_history=payload) + b'b',
    ),
}  # fmt: skip


def legacy_file(path, body, position=3):
    """Write a file of torch.save's old format, with these opcodes as one of its five pickles."""
    file = io.BytesIO()
    torch.save({'a': torch.zeros(1)}, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    pickles = []
    for _ in range(3):
        start = file.tell()
        pickle.load(file)  # magic number, protocol and machine, which are safe to unpickle
        pickles.append(file.getvalue()[start : file.tell()])
    pickles += [pickle.dumps({}, 2), pickle.dumps([], 2)]
    pickles[position] = b'\x80\x02' + body + b'.'
    Path(path).write_bytes(b''.join(pickles))
