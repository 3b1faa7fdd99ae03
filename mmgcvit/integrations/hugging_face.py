"""GC ViT with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of the Hugging Face Hub.

A repository or folder has three files: ``config.json`` with the arguments of the network,
``model.safetensors`` and a model card.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    ModelCard,
    ModelCardData,
    PyTorchModelHubMixin,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from ..errors import UserError
from ..files import write_atomically
from ..installed import resources
from ..models import GCViT
from ..optional_mmengine import print_log
from ..weights.checkpoint import UNKNOWN_LICENSE, open_checkpoint
from ..weights.export import write_weights
from ..weights.fit import Fit, load_checkpoint
from ..weights.layouts import LAYOUTS
from ..weights.sources import hub_is_offline, public_name, public_text

CODE_LICENSE = 'Apache-2.0'
CARD = """---
{{ card_data }}
---

# GC ViT {{ arch }}

The backbone of GC ViT (Global Context Vision Transformer), with {{ parameters }} parameters and
feature maps of {{ channels }} channels at strides {{ strides }}.

```python
from mmgcvit.integrations.hugging_face import HubGCViT

backbone = HubGCViT.from_pretrained('OWNER/REPOSITORY')
```

- Paper: [Global Context Vision Transformers]({{ paper_url }})
- License of the weights: {{ weights_license }}
- License of the code: {{ code_license }}
{% if results %}
Results of the published classifier of this size on ImageNet-1k. They were not measured with the
weights in this repository:
{% for name, value in results.items() %}
- {{ name }}: {{ value }}
{%- endfor %}
{% endif %}"""

# what a card states of the weights
FACTS = re.compile(r'^(?:# |- )((?:GC ViT|License of the weights:) .*)$', re.MULTILINE)


class HubGCViT(
    GCViT,
    PyTorchModelHubMixin,
    library_name='mmgcvit',
    paper_url='https://arxiv.org/abs/2206.09959',
    pipeline_tag='image-feature-extraction',
    tags=['gcvit', 'backbone'],
    model_card_template=CARD,
):
    """GC ViT that is loaded from and saved to the Hugging Face Hub or a folder.

    The arguments are those of :class:`mmgcvit.GCViT`. All but ``init_cfg`` are saved.

    Attributes:
        weights_license (str): License of the weights for the model card. Empty if unknown.

    Example:
        >>> from mmgcvit.integrations.hugging_face import HubGCViT
        >>> model = HubGCViT('tiny')
        >>> fitted = model.load_weights('timm://gcvit_tiny.in1k')
        >>> model.save_pretrained('gcvit_tiny')
        >>> model = HubGCViT.from_pretrained('gcvit_tiny', window_size=12)
    """

    weights_license = ''

    def __new__(cls, *args: Any, **kwargs: Any) -> 'HubGCViT':
        # the mixin collects the arguments here, and leaves out what JSON does not support
        options = {name: _plain(value) for name, value in kwargs.items()}
        return super().__new__(cls, *map(_plain, args), **options)

    def load_weights(
        self,
        source: str | os.PathLike,
        prefix: str | None = None,
        ema: bool = False,
        sha256: str | None = None,
        adapt_input: bool = False,
    ) -> Fit:
        """Load weights in any layout, and note their license for the model card.

        The arguments are those of :func:`mmgcvit.weights.load_pretrained`.

        Raises:
            UserError: If the file is not available or readable, or does not match the model.
        """
        checkpoint = open_checkpoint(source, prefix, ema, sha256)
        fitted = load_checkpoint(self, checkpoint, adapt_input)
        self.weights_license = checkpoint.license
        return fitted

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        local_files_only: bool = False,
        adapt_input: bool = False,
        **options: Any,
    ) -> 'HubGCViT':
        """Load a model from a folder or a repository, in eval mode.

        Args:
            pretrained_model_name_or_path: Folder written by :meth:`save_pretrained`, or
                OWNER/REPOSITORY on the Hub.
            local_files_only: Only use the cache, which is also used if the Hub does not respond.
            adapt_input: Adapt the stem's filters to another ``in_channels`` than the saved one.
            **options: ``revision``, ``token``, ``cache_dir`` and ``force_download`` of
                :class:`huggingface_hub.ModelHubMixin`, and arguments of the network that replace
                the saved ones. Position biases are resized to another ``window_size``.

        Raises:
            UserError: If the model is not available, its files cannot be read, or its weights do
                not match its config.
        """
        name = os.fspath(pretrained_model_name_or_path)
        offline = local_files_only or (not os.path.isdir(name) and hub_is_offline())
        with _one_line(
            f'{name} could not be loaded',
            'give a folder with config.json and model.safetensors as save_pretrained writes them, '
            'or OWNER/REPOSITORY on the Hub; a private repository needs a token',
        ):
            return super().from_pretrained(
                name, local_files_only=offline, adapt_input=adapt_input, **options
            )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        adapt_input: bool,
        **arguments: Any,
    ) -> 'HubGCViT':
        path = os.path.join(model_id, constants.SAFETENSORS_SINGLE_FILE)
        if not os.path.isdir(model_id):
            path = hf_hub_download(
                model_id,
                constants.SAFETENSORS_SINGLE_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        if 'arch' not in arguments:
            raise UserError(
                f"{model_id} has no {constants.CONFIG_NAME} with the network's arch: give a folder "
                'or repository that save_pretrained wrote, or set arch'
            )
        model = cls(**arguments)
        model.load_weights(path, adapt_input=adapt_input)
        return model.eval()

    @property
    def _arguments(self) -> dict[str, Any]:
        """The network's arguments without ``init_cfg``, which may contain a local path."""
        arguments = self._hub_mixin_config  # collected by the mixin
        assert isinstance(arguments, dict)
        return {name: value for name, value in arguments.items() if name != 'init_cfg'}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Save the weights, the config and a model card in a folder.

        An existing model card is kept, unless it describes weights of another license or size.

        Args:
            save_directory: Folder, which is created if needed.
            model_card_kwargs: Arguments of :meth:`generate_model_card`.
            **options: See :meth:`huggingface_hub.ModelHubMixin.save_pretrained`.

        Returns:
            URL of the commit with ``push_to_hub=True``, otherwise None.

        Raises:
            UserError: If a file cannot be written, or for the reasons of :meth:`push_to_hub`.
        """
        readme = Path(save_directory, 'README.md')
        with _one_line(f'{save_directory} could not be written', 'give another folder'):
            if readme.is_file():
                found = FACTS.findall(readme.read_text(encoding='utf-8'))
                facts = FACTS.findall(self.generate_model_card(**(model_card_kwargs or {})).content)
                if stale := [fact for fact in found if fact not in facts]:
                    states = '; '.join(stale)
                    print_log(f'replacing {readme}, which states: {states}', logger='current')
                    readme.unlink()
            return super().save_pretrained(
                Path(save_directory), model_card_kwargs=model_card_kwargs, **options
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        write_weights(
            save_directory / constants.SAFETENSORS_SINGLE_FILE,
            self.state_dict(),
            meta={},
            provenance={
                'layout': 'mmgcvit',
                'licence': self.weights_license or UNKNOWN_LICENSE,
            },
        )
        text = json.dumps(self._arguments, indent=2, sort_keys=True)
        write_atomically(save_directory / constants.CONFIG_NAME, text.encode())

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files of :meth:`save_pretrained` to a repository, which is created if needed.

        Args:
            repo_id: OWNER/REPOSITORY.
            **options: See :meth:`huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            URL of the commit.

        Raises:
            UserError: If the Hub does not respond or rejects the upload.
        """
        if hub_is_offline():
            raise UserError(
                f'{repo_id} was not uploaded: {public_name(constants.ENDPOINT)} does not respond; '
                'use save_pretrained, and upload the folder on a machine with network access'
            )
        with _one_line(
            f'{repo_id} was not uploaded',
            'log in with `hf auth login` as a user who can write to this repository',
        ):
            return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, license: str | None = None) -> ModelCard:
        """Return the model card, with published results of the size from metafile.yml.

        Args:
            license: License of the weights, such as 'cc-by-nc-sa-4.0'. The default is
                ``weights_license``.
        """
        arch = self._arguments['arch']
        published = _published(arch)
        known = published.get('Metadata', {}).get('Weights License')
        text = license or self.weights_license
        if license is None and known and known in text:
            license = known.lower().replace(' ', '-')
        info = self._hub_mixin_info
        return ModelCard.from_template(
            ModelCardData(**info.model_card_data.to_dict(), license=license),
            template_str=info.model_card_template,
            arch=arch if isinstance(arch, str) else 'of a custom size',
            parameters=f'{sum(p.numel() for p in self.parameters()) / 1e6:.1f}M',
            channels=_row(self.out_channels),
            strides=_row(self.strides),
            paper_url=info.paper_url,
            weights_license=text or f'not recorded. {LAYOUTS["nvidia"].license}',
            code_license=CODE_LICENSE,
            results=published['Results'][0]['Metrics'] if published else {},
        )


def _published(arch: object) -> dict[str, Any]:
    """Return the entry of metafile.yml for NVIDIA's classifier of a size, or an empty dict."""
    models = yaml.safe_load((resources() / 'metafile.yml').read_text(encoding='utf-8'))['Models']
    for model in models:
        if model['Metadata'].get('Backbone') == arch and 'Weights License' in model['Metadata']:
            return model
    return {}


def _plain(value: object) -> object:
    """Return an argument of the network as JSON supports it, such as a range as a list."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, Real) and not isinstance(value, bool):  # such as numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _row(numbers: Iterable[int]) -> str:
    return ', '.join(map(str, numbers))


@contextlib.contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
    """Convert errors of files and of the Hub to a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    # ValueError: an argument, the name of a repository, or damaged JSON; the other two: JSON whose
    # content is no dict, or is nested too deeply
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        is_missing = isinstance(error, LocalEntryNotFoundError)
        reason = 'offline, and not in the cache' if is_missing else public_text(error)[:300]
        raise UserError(f'{what} ({reason}): {remedy}') from None
