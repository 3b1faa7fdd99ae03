"""Files that run code when they are unpickled: each would make a folder, the canary."""

import io
import pickle
import zipfile
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
    """Reach exec from a function, or from a class by names in it, by getattr alone."""
    scope = getattr_of(function, *names, '__globals__', '__getitem__')
    return call(getattr_of(call(scope, text('__builtins__')), '__getitem__'), text('exec'))


def encoded(content):
    """Bytes, as Python writes them in this protocol."""
    return call(named('_codecs.encode'), text(content.decode('latin1')), text('latin1'))


def calling_history(function, argument):
    """A HistoryBuffer whose own state setter calls a function.

    It ends in ``self._statistics_methods.update(state['statistics_methods'])``, and attributes of
    the instance come before those of the class.
    """
    methods = empty_instance(HISTORY) + dict_of(update=function) + b'b'
    hooked = dict_of(
        _statistics_methods=methods, _set_default_statistics=named('collections.OrderedDict')
    )
    last = dict_of(statistics_methods=argument)
    return empty_instance(HISTORY) + hooked + b'b' + last + b'b'


def zipped(body, folder='archive', name='data.pkl'):
    """A file of torch.save's format whose pickle is these opcodes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(f'{folder}/{name}', b'\x80\x02' + body + b'.')
        archive.writestr(f'{folder}/byteorder', 'little')
        archive.writestr(f'{folder}/version', '3\n')
    return file.getvalue()


def zip_file(path, *arguments):
    Path(path).write_bytes(zipped(*arguments))


def payloads(canary):
    """Opcodes, by what they try, that make a folder if nobody stops them."""
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
    """Write a file of torch.save's old format: five pickles in a row, one of them these opcodes."""
    file = io.BytesIO()
    torch.save({'a': torch.zeros(1)}, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    pickles = []
    for _ in range(3):
        start = file.tell()
        pickle.load(file)  # a magic number, the protocol, the machine: of our own making
        pickles.append(file.getvalue()[start : file.tell()])
    pickles += [pickle.dumps({}, 2), pickle.dumps([], 2)]
    pickles[position] = b'\x80\x02' + body + b'.'
    Path(path).write_bytes(b''.join(pickles))
