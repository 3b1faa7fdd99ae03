import pytest
import torch

from mmgcvit.engine.workers import LONGEST_FOLDER, require_short_temporary_folder
from mmgcvit.errors import UserError


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.tensor(index)


def test_the_longest_temporary_folder_is_long_enough_for_data_workers(tmp_path, monkeypatch):
    folder = str(tmp_path).ljust(LONGEST_FOLDER, '_')[:LONGEST_FOLDER]
    if not folder.startswith(str(tmp_path)):
        pytest.skip('the path of the test is too long')
    tmp_path.with_name(folder.rpartition('/')[2]).mkdir(exist_ok=True)
    monkeypatch.setattr('tempfile.tempdir', folder)
    require_short_temporary_folder()
    batches = torch.utils.data.DataLoader(Numbers(), num_workers=1, timeout=20)
    assert [batch.item() for batch in batches] == [0, 1]
    monkeypatch.setattr('tempfile.tempdir', folder + '_')
    with pytest.raises(UserError, match=rf'{LONGEST_FOLDER + 1} bytes.*TMPDIR'):
        require_short_temporary_folder()
