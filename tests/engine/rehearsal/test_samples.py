"""Which items a rehearsal loads, and what it reports if one cannot be loaded."""

import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmgcvit.engine.rehearsal.samples import (
    limit,
    load,
    some_items,
    training_items,
    worst_items,
)
from mmgcvit.errors import UserError


class Sized:
    """A dataset with widths and numbers of instances, as in COCO files."""

    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def get_data_info(self, index):
        width, instances = self.images[index]
        return dict(width=width, height=10, instances=[{}] * instances)

    def __getitem__(self, index):
        return index


def loader_config(sampler, batch_size=2):
    return ConfigDict(batch_size=batch_size, num_workers=0, sampler=sampler, dataset=None)


def test_worst_items():
    dataset = Sized((30, 1), (50, 2), (20, 9), (40, 3), (10, 0))
    assert worst_items(dataset) == {'largest image': 1, 'most instances': 2, 'smallest image': 4}


def test_datasets_without_sizes_have_no_worst_items():
    class Segmentation(Sized):
        def get_data_info(self, index):
            return dict(img_path='a.jpg')

    assert worst_items(Segmentation((1, 1))) == {}
    assert worst_items(range(3)) == {}


def test_first_update_is_the_heaviest_and_second_begins_with_the_smallest():
    worst = {'largest image': 7, 'most instances': 5, 'smallest image': 3}
    chosen = training_items(10, worst, per_update=4, processes=2, updates=2)
    assert len(chosen) == 16
    for rank in range(2):
        items = chosen[8 * rank : 8 * rank + 8]
        assert set(items[:4]) == {7, 5} and items[4] == 3


def test_more_updates_have_ordinary_images():
    worst = {'largest image': 7, 'most instances': 5, 'smallest image': 3}
    chosen = training_items(100, worst, per_update=2, processes=1, updates=4)
    assert set(chosen[:2]) == {7, 5} and chosen[2] == 3
    assert len(chosen) == 8 and len(set(chosen[3:])) == 5


def test_small_datasets_are_repeated():
    assert training_items(1, {}, per_update=3, processes=2, updates=2) == [0] * 12
    assert some_items(2, {'largest image': 1}, 12) == [1, 0]


@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
def test_limited_loader_gives_the_chosen_items(kind):
    config = loader_config(dict(type=kind, shuffle=True))
    limit(config, 4, [3, 1, 1, 2])
    config.dataset = Sized(*[(1, 1)] * 5)
    loader = Runner.build_dataloader(config, seed=0)
    assert [list(batch) for batch in loader.batch_sampler] == [[3, 1], [1, 2]]
    assert len(loader) == 3  # of the whole dataset: schedules depend on it


def test_samplers_that_compose_batches_choose_themselves():
    @DATA_SAMPLERS.register_module(force=True)
    class Backwards:
        def __init__(self, dataset, seed):
            self.length = len(dataset)

        def __iter__(self):
            return iter(range(self.length - 1, -1, -1))

    config = loader_config(dict(type='Backwards'))
    limit(config, 4, [0, 0, 0, 0])
    config.dataset = Sized(*[(1, 1)] * 3)
    loader = Runner.build_dataloader(config, seed=0)
    assert [list(batch) for batch in loader.batch_sampler] == [[2, 1], [0, 2]]


class Broken(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=f'images/{i}.jpg') for i in range(3)]


def halve(results):
    if results['img_path'].endswith('1.jpg'):
        raise ZeroDivisionError('no width')
    return results


class Halve:
    def __call__(self, results):
        return halve(results)


def test_failing_item_is_named_with_file_and_transform():
    dataset = Broken(pipeline=[Halve()])
    with pytest.raises(UserError) as found:
        load(DataLoader(dataset, collate_fn=list), [0, 1], 'val_dataloader')
    text = str(found.value)
    assert text.startswith('val_dataloader (item 1, ') and 'test_samples.py:' in text
    assert 'images/1.jpg: Halve cannot process this image (ZeroDivisionError: no width)' in text
    assert 'the settings of Halve in the pipeline' in text


def test_items_that_do_not_collate_are_an_error():
    def collate(items):
        raise TypeError('cannot stack')

    dataset = Broken(pipeline=[])
    with pytest.raises(UserError, match=r'train_dataloader: batch: TypeError: cannot stack'):
        load(DataLoader(dataset, collate_fn=collate), [0], 'train_dataloader')
