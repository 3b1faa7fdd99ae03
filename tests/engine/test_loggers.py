"""``--log-to``. The packages wandb and mlflow are replaced, except in the nightly tests."""

import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import toy_config

from mmgcvit.engine import build_runner
from mmgcvit.engine.loggers import log_to
from mmgcvit.errors import UserError
from mmgcvit.registry import VISBACKENDS

LOCAL = dict(type='LocalVisBackend')
CLASS_WISE = ['coco/knife & fork_AP', 'coco/a(b,_AP', 'coco/a(b)_AP', 'coco/größe_AP', 'IoU.a//b:']
ALLOWED = [
    *('coco/knife _ fork_AP', 'coco/a_b__AP', 'coco/a_b__AP_', 'coco/größe_AP', 'IoU.a/b_'),
    'loss _box_',
]


def train(work_dir, names, iterations, resume=None, **visualizer):
    cfg = toy_config(work_dir, iterations=iterations)
    cfg.resume = resume
    name = f'{cfg.experiment_name}_visualizer'
    cfg.visualizer = dict(type='Visualizer', name=name, vis_backends=[LOCAL], **visualizer)
    log_to(cfg, names)
    build_runner(cfg).train()


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that records its runs, and the losses that are logged."""
    fake = SimpleNamespace(starts=[], losses=[], __spec__='installed')

    def init(**settings):
        fake.starts.append(settings)
        fake.run = SimpleNamespace(
            id=settings['id'] or f'new{len(fake.starts)}', log_code=lambda name: None
        )

    fake.init = init
    fake.config = SimpleNamespace(update=lambda *_, **__: None)
    fake.log = lambda values, commit: fake.losses.extend([values['loss']])
    fake.join = lambda: fake.losses.append('end')
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    """An MLflow that records its runs."""
    fake = SimpleNamespace(starts=[], params=[], location=None, __spec__='installed')
    fake.set_tracking_uri = lambda uri: setattr(fake, 'uri', uri)
    fake.get_experiment_by_name = lambda name: fake.location
    fake.create_experiment = lambda name, artifact_location: setattr(
        fake, 'location', artifact_location
    )
    fake.set_experiment = lambda name: setattr(fake, 'experiment', name)
    fake.start_run = lambda run_id, run_name: fake.starts.append((run_id, run_name))
    fake.active_run = lambda: SimpleNamespace(info=SimpleNamespace(run_id='first'))
    fake.log_params = lambda params: fake.params.append(len(params))
    fake.log_text = fake.log_metrics = lambda *_: None
    fake.log_artifact = lambda *_: pytest.fail('files of the work dir were copied')
    fake.end_run = lambda: fake.starts.append('end')
    monkeypatch.setitem(sys.modules, 'mlflow', fake)
    return fake


def test_tensorboard_has_the_losses(tmp_path):
    train(tmp_path, ['tensorboard'], iterations=3)
    (folder,) = tmp_path.glob('*/vis_data')
    assert len(EventAccumulator(str(folder)).Reload().Scalars('loss')) == 3
    assert (folder / 'scalars.json').exists()


def test_a_resumed_training_continues_the_run_of_wandb(tmp_path, wandb):
    train(tmp_path / 'work', ['wandb'], iterations=2)
    train(tmp_path / 'work', ['wandb'], iterations=3, resume='auto')
    train(tmp_path / 'work', ['wandb'], iterations=1)
    runs = [(start['name'], start['id'], start['resume']) for start in wandb.starts]
    assert runs == [('work', None, None), ('work', 'new1', 'allow'), ('work', None, None)]
    assert (tmp_path / 'work' / 'wandb_run_id').read_text() == 'new3'
    assert [loss if loss == 'end' else 'loss' for loss in wandb.losses] == [
        *('loss', 'loss', 'end'),
        *('loss', 'end'),
        *('loss', 'end'),
    ]


def test_a_resumed_training_continues_the_run_of_mlflow(tmp_path, mlflow, monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    train(tmp_path / 'work', ['mlflow'], iterations=1)
    train(tmp_path / 'work', ['mlflow'], iterations=2, resume='auto')
    assert mlflow.starts == [(None, 'work'), 'end', ('first', None), 'end']
    # MLflow refuses changes of settings
    assert mlflow.params[0] > 10 and mlflow.params[1] == 0
    assert mlflow.uri == f'sqlite:///{tmp_path}/work/mlflow.db'
    assert mlflow.location == f'file://{tmp_path}/work/mlartifacts'
    assert mlflow.experiment == 'mmgcvit'


def class_wise(work_dir, name):
    """Log metrics of classes with names that MLflow refuses; return its backend."""
    cfg = Config(dict(work_dir=str(work_dir)))
    log_to(cfg, [name])
    backend = VISBACKENDS.build(dict(cfg.visualizer.vis_backends[0], save_dir=str(work_dir)))
    backend.add_config(cfg)
    for step, value in enumerate((0.25, 0.5), 1):
        metrics = {each: value + number for number, each in enumerate(CLASS_WISE)}
        backend.add_scalars(metrics, step, str(work_dir / 'scalars.json'))
        backend.add_scalar('loss (box)', value, step)
    return backend


def test_names_that_mlflow_refuses(tmp_path, mlflow, log):
    logged = {}
    mlflow.log_metrics = lambda metrics, step: logged.update(metrics)
    mlflow.log_metric = lambda name, value, step: logged.update({name: value})
    class_wise(tmp_path, 'mlflow')
    assert logged == dict(zip(ALLOWED, [0.5, 1.5, 2.5, 3.5, 4.5, 0.5], strict=True))
    # once, and only about the names that would be the same
    (warning,) = [line for line in log if 'mlflow' in line]
    assert 'coco/a(b)_AP is logged as coco/a_b__AP_, because coco/a_b__AP is the name of' in warning


def test_a_run_that_cannot_start_is_reported_before_the_training(tmp_path, wandb):
    def init(**settings):
        raise ValueError('No API key configured')

    wandb.init = init
    with pytest.raises(UserError, match=r'No API key configured\): run "wandb login", or set WAND'):
        train(tmp_path, ['wandb'], iterations=1)
    assert not list(tmp_path.glob('*.pth'))


def test_a_missing_package_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='mlflow, which is not installed: run "pip install mlflow"'):
        log_to(Config(dict(work_dir=str(tmp_path))), ['mlflow'])


def test_backends_of_the_config_keep_their_settings(wandb, mlflow):
    own = [LOCAL, dict(type='WandbVisBackend', init_kwargs=dict(project='mine'))]
    cfg = Config(dict(work_dir='work', visualizer=dict(type='Visualizer', vis_backends=own)))
    log_to(cfg, ['wandb', 'mlflow', 'mlflow'])
    assert cfg.visualizer.vis_backends[:2] == own
    (added,) = cfg.visualizer.vis_backends[2:]
    assert added == dict(type='mmgcvit.ResumableMLflowBackend', work_dir='work', resume=False)


def offline(name, monkeypatch):
    """Import the package of a logger, and keep it from using the network."""
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    return pytest.importorskip(name)


@pytest.mark.nightly
@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_the_package_itself_continues_a_run(tmp_path, name, monkeypatch):
    package = offline(name, monkeypatch)
    train(tmp_path, [name], iterations=2)
    run = (tmp_path / f'{name}_run_id').read_text()
    train(tmp_path, [name], iterations=3, resume='auto')
    assert (tmp_path / f'{name}_run_id').read_text() == run
    if name == 'wandb':
        assert (
            len(list(tmp_path.glob(f'*/vis_data/wandb/offline-run-*-{run}/run-{run}.wandb'))) == 2
        )
    else:
        losses = package.MlflowClient().get_metric_history(run, 'loss')
        assert [loss.step for loss in losses] == [1, 2, 3]


@pytest.mark.nightly
@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_the_package_itself_accepts_names_of_classes(tmp_path, name, monkeypatch):
    package = offline(name, monkeypatch)
    backend = class_wise(tmp_path, name)
    backend.close()
    if name == 'mlflow':
        run = package.get_run((tmp_path / 'mlflow_run_id').read_text())
        assert sorted(run.data.metrics) == sorted(ALLOWED)
