"""Each row of the tables in docs/weights.md is run."""

import itertools
import re
from pathlib import Path

import crafted
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import nn

from mmgcvit import GCViT
from mmgcvit.engine import build_runner
from mmgcvit.errors import UserError
from mmgcvit.ops import resize_bias_table
from mmgcvit.weights import publish_model
from mmgcvit.weights.layouts import to_nvidia, to_timm

PAGE = Path(__file__).parents[2] / 'docs' / 'weights.md'
ARCH = dict(
    embed_dims=8,
    depths=(2, 1, 2, 2),
    num_heads=(1, 1, 2, 2),
    mlp_ratio=1,
    layer_scale_init_value=None,
)
_numbers = itertools.count()


def table(marker):
    """Rows of a table on the page, as dicts by column."""
    block = PAGE.read_text().split(f'<!-- {marker}: ')[1].split('\n\n')[0]
    lines = [[c.strip() for c in line.strip('|').split('|')] for line in block.splitlines()[1:]]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[2:]]


@MODELS.register_module(force=True)
class PageDetector(BaseModel):
    """A model with the names of a detector: a GC ViT backbone, a neck and a head."""

    def __init__(self, window_size=4, compiled=False):
        super().__init__()
        self.backbone = GCViT(ARCH, window_size=window_size)
        self.compiled = compiled
        self.neck = nn.Linear(8, 4)
        self.bbox_head = nn.Linear(4, 2)

    def init_weights(self):
        super().init_weights()
        if self.compiled:  # after initialization: mmengine cannot initialize compiled modules
            self.backbone = torch.compile(self.backbone, backend='eager')

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.bbox_head(self.neck(self.backbone(torch.stack(inputs))[0].mean((2, 3))))
        return {'loss_cls': (out**2).mean()} if mode == 'loss' else list(out)


def runner(folder, **settings):
    """A Runner that trains that detector on one image."""
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=[dict(inputs=torch.ones(3, 32, 32), data_samples=[])],
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    config = dict(
        model=dict(type='PageDetector'),
        work_dir=str(folder),
        experiment_name=f'page_{next(_numbers)}',
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=dict(type='DumpResults', out_file_path=str(folder / 'out.pkl')),
        default_scope='mmengine',
    )
    return build_runner(Config({**config, **settings}))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A training checkpoint, and the tensors in it."""
    folder = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        runner(folder).train()
    path = folder / 'iter_1.pth'
    return path, torch.load(path, weights_only=False)['state_dict']


class Files:
    """Writes the files in the rows of the tables."""

    def __init__(self, trained, folder):
        self.checkpoint, self.state = trained
        self.folder = folder
        self.backbone = {
            k.removeprefix('backbone.'): v for k, v in self.state.items() if 'backbone.' in k
        }
        self.classifier = {
            k: v for k, v in self.backbone.items() if not k.startswith(('norm0', 'norm1', 'norm2'))
        }
        self.head = {'head.fc.weight': torch.rand(5, 64), 'head.fc.bias': torch.rand(5)}

    def write(self, row):
        writers = {
            "NVIDIA's classifier, `.pth.tar`": self.nvidia_classifier,
            "NVIDIA's detector for mmdet 2, `.pth`": self.nvidia_detector,
            "timm's classifier, `.pth` or `.bin`": self.timm_classifier,
            "timm's classifier, `.safetensors`": self.timm_safetensors,
            'a backbone of this package, `.pth`': self.own_backbone,
            'a backbone of this package, `.safetensors`': self.own_safetensors,
            'a checkpoint of `tools/train.py`': lambda: self.checkpoint,
            'a file of `tools/publish_model.py`': self.published,
            "mmpretrain's classifier with this backbone": self.mmpretrain_classifier,
        }
        return writers[row]()

    def save(self, name, content):
        torch.save(content, self.folder / name)
        return self.folder / name

    def nvidia_classifier(self):
        state = to_nvidia({**self.classifier, **self.head})
        return self.save('gcvit.pth.tar', {'state_dict': state, 'epoch': 3, 'optimizer': {}})

    def nvidia_detector(self):
        backbone = {f'backbone.{k}': v for k, v in to_nvidia(self.backbone).items()}
        rest = {k: v for k, v in self.state.items() if 'backbone.' not in k}
        return self.save(
            'cascade.pth', {'meta': {}, 'optimizer': {}, 'state_dict': {**backbone, **rest}}
        )

    def timm_classifier(self):
        return self.save('timm.bin', to_timm({**self.classifier, **self.head}))

    def timm_safetensors(self):
        state = {k: v.contiguous() for k, v in to_timm({**self.classifier, **self.head}).items()}
        save_file(state, self.folder / 'timm.safetensors')
        return self.folder / 'timm.safetensors'

    def own_backbone(self):
        return self.save('backbone.pth', self.backbone)

    def own_safetensors(self):
        save_file(self.backbone, self.folder / 'backbone.safetensors')
        return self.folder / 'backbone.safetensors'

    def published(self):
        return publish_model(self.checkpoint, self.folder / 'published.pth')

    def mmpretrain_classifier(self):
        backbone = {f'backbone.{k}': v for k, v in self.classifier.items()}
        return self.save('classifier.pth', {'meta': {}, 'state_dict': {**backbone, **self.head}})


@pytest.fixture
def files(trained, tmp_path):
    return Files(trained, tmp_path)


@pytest.fixture
def put(server, hub):
    """Make a file available from a source, and return its path or URL."""
    address, served, _ = server
    folder, _ = hub

    def copy(path, to):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())

    def put(path, source):
        if source == '`http(s)://`':
            copy(path, served / path.name)
            return f'{address}/{path.name}'
        if source == '`hf://`':
            copy(path, folder / 'owner' / 'repo' / 'main' / path.name)
            return f'hf://owner/repo/{path.name}'
        if source == '`timm://`':
            kept = 'model.safetensors' if 'safetensors' in path.name else 'pytorch_model.bin'
            copy(path, folder / 'timm' / 'gcvit_page' / 'main' / kept)
            return 'timm://gcvit_page'
        return {'path': str(path), '`file://`': path.as_uri()}[source]

    return put


@pytest.mark.parametrize('row', table('init_cfg'), ids=lambda row: row['layout'])
def test_layout_from_each_source(row, files, put, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'torch'))
    path = files.write(row.pop('layout'))
    for source, result in row.items():
        if result == '–':
            continue
        assert result == 'loads'
        init_cfg = dict(type='Pretrained', checkpoint=put(path, source))
        model = GCViT(ARCH, window_size=4, init_cfg=init_cfg)
        model.init_weights()
        taken = files.classifier
        assert all(torch.equal(model.state_dict()[k], v) for k, v in taken.items()), source


@pytest.mark.parametrize('use', ['`load_from`', '`tools/test.py`', '`--resume`'])
@pytest.mark.parametrize('row', table('load_from'), ids=lambda row: row['file'])
def test_complete_model(row, use, files, tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    path = files.write(row['file'])
    settings = dict(load_from=str(path))
    if use == '`--resume`':
        settings = dict(resume=str(path))

    def load():
        new = runner(tmp_path / 'run', **settings, train_cfg=dict(by_epoch=False, max_iters=0))
        new.test() if use == '`tools/test.py`' else new.train()
        return new.model.state_dict()

    if row[use] == 'loads':
        found = load()
        assert all(torch.equal(found[name], tensor) for name, tensor in files.state.items())
        return
    message = re.fullmatch('refused: `(.*)`', row[use])[1]
    with pytest.raises(UserError, match=re.escape(message)):
        load()


def test_window_sizes_may_differ_only_with_load_from(trained, tmp_path, monkeypatch, log):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    settings = dict(load_from=str(trained[0]), model=dict(type='PageDetector', window_size=6))
    new = runner(tmp_path / 'begun', **settings, train_cfg=dict(by_epoch=False, max_iters=0))
    new.train()
    name = 'backbone.stages.0.blocks.0.attn.relative_position_bias_table'
    resized = resize_bias_table(trained[1][name], 121)
    assert torch.equal(new.model.state_dict()[name], resized)
    assert any('(7 resized to the window sizes of the model)' in line for line in log)
    with pytest.raises(UserError, match='7 tensors have mismatched shapes'):
        runner(tmp_path / 'tested', **settings).test()


@pytest.mark.parametrize('window', [4, 6])
def test_ema_starts_from_the_file(files, tmp_path, monkeypatch, window):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    begun = runner(
        tmp_path / 'begun',
        load_from=str(files.nvidia_detector()),
        model=dict(type='PageDetector', window_size=window),
        custom_hooks=[dict(type='EMAHook')],
        train_cfg=dict(by_epoch=False, max_iters=0),
    )
    begun.train()
    (hook,) = [hook for hook in begun.hooks if type(hook).__name__ == 'EMAHook']
    averaged = hook.ema_model.module.state_dict()
    assert torch.equal(
        averaged['backbone.stem.conv.weight'], files.state['backbone.stem.conv.weight']
    )
    assert all(torch.equal(averaged[k], v) for k, v in begun.model.state_dict().items())


@pytest.mark.parametrize('name', ['bbox_head.bias', 'backbone.norm1.bias'])
@pytest.mark.parametrize('use', ['load_from', 'resume', 'test'])
def test_nan_is_an_error_wherever_it_is(files, tmp_path, monkeypatch, name, use):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    content = torch.load(files.checkpoint, weights_only=False)
    content['state_dict'][name] = content['state_dict'][name] * float('nan')
    path = str(files.save('nan.pth', content))
    begun = runner(tmp_path / 'begun', **{'resume' if use == 'resume' else 'load_from': path})
    with pytest.raises(UserError, match=rf'nan\.pth contains NaN or infinity in {name}'):
        begun.test() if use == 'test' else begun.train()


class Broken:
    """Writes the files in the table of broken files, and returns arguments of the model."""

    def __init__(self, files, canary):
        self.files, self.path = files, files.folder / 'file.pth'
        self.command = crafted.payloads(canary)['os.system']

    def write(self, row):
        state = dict(self.files.backbone)
        init = {}
        if 'pickle' in row or 'safetensors' in row:
            if 'safetensors' in row:
                self.path = self.path.with_suffix('.safetensors')
            crafted.zip_file(self.path, self.command)
        elif 'TorchScript' in row:
            torch.jit.save(torch.jit.script(nn.Linear(1, 1)), self.path)
        elif 'empty' in row:
            self.path.write_bytes(b'')
        elif 'web page' in row:
            self.path.write_text('<!DOCTYPE html><title>Moved</title>')
        elif 'LFS' in row:
            self.path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
        elif 'ResNet' in row:
            torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7)}, self.path)
        elif 'xxtiny' in row:
            tiny = GCViT('xxtiny', window_size=7).half().state_dict()
            torch.save(tiny, self.path)
            init = dict(arch='tiny')
        else:
            if 'half' in row:
                state = dict(list(state.items())[: len(state) // 2])
            elif 'NaN' in row:
                state['norm2.bias'] = state['norm2.bias'] * float('nan')
            elif 'channels' in row:
                init = dict(in_channels=4)
            elif 'integers' in row:
                state['norm2.bias'] = state['norm2.bias'].long()
            torch.save(state, self.path)
            content = bytearray(self.path.read_bytes())
            if 'truncated' in row:
                self.path.write_bytes(content[: len(content) // 2])
            elif 'byte' in row:
                content[len(content) // 2] ^= 1
                self.path.write_bytes(content)
            elif 'sha256' in row:
                init = dict(sha256='0' * 64)
        return init


@pytest.mark.filterwarnings('ignore:.*torch.jit')
@pytest.mark.parametrize('row', table('broken'), ids=lambda row: row['file'])
def test_error_for_broken_file(row, files, tmp_path):
    broken = Broken(files, tmp_path / 'ran')
    settings = broken.write(row['file'])
    model = dict(arch=ARCH, window_size=4)
    model |= {key: settings.pop(key) for key in ('arch', 'in_channels') if key in settings}
    init_cfg = dict(type='Pretrained', checkpoint=str(broken.path), **settings)
    model = GCViT(**model, init_cfg=init_cfg)
    with pytest.raises(UserError, match=re.escape(row['error'].strip('`'))) as error:
        model.init_weights()
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('use', ['train', 'test'])
@pytest.mark.parametrize('compiled', [True, False])
def test_complete_models_in_wrappers(files, tmp_path, monkeypatch, log, use, compiled):
    """A Lightning module of NVIDIA's detector, for a model whose backbone is compiled or not."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    content = torch.load(files.nvidia_detector())
    state = {f'model._orig_mod.{name}': t for name, t in content['state_dict'].items()}
    path = files.save('lightning.ckpt', {'state_dict': {**state, 'loss.weight': torch.ones(1)}})
    begun = runner(
        tmp_path / 'begun',
        model=dict(type='PageDetector', compiled=compiled),
        load_from=str(path),
        train_cfg=dict(by_epoch=False, max_iters=0),
    )
    begun.test() if use == 'test' else begun.train()
    for name, tensor in begun.model.state_dict().items():
        assert torch.equal(tensor, files.state[name.replace('_orig_mod.', '')]), name
    assert len([line for line in log if 'CC BY-NC-SA 4.0' in line]) == 1
