"""Classifiers as graphs: from an image of any size to the probability of each class.

H, W: height and width of the image, K: number of classes.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from ..errors import UserError
from .image import ImageInput


def classifier_graph(model: nn.Module) -> Callable[[ImageInput], nn.Module]:
    """Return the function that builds the graph of a classifier for an input.

    Raises:
        UserError: If the classifier cannot be exported.
    """
    head = getattr(model, 'head', None)
    usual = all(
        getattr(type(head), name, None) is getattr(ClsHead, name)
        for name in ('predict', '_get_predictions')
    )
    if type(model) is not ImageClassifier or not usual:
        raise UserError(
            f'model is {type(model).__name__} with {type(head).__name__}, which cannot be '
            'exported: use ImageClassifier with LinearClsHead, or export only the backbone '
            '(docs/graph_modes.md)'
        )
    return partial(Classifier, model)


class Classifier(nn.Module):
    """Classifier that predicts one class per image.

    Args:
        model: Classifier of mmpretrain.
        image: Input of the graph.
    """

    outputs: ClassVar[dict[str, dict[int, str]]] = {'scores': {}}

    def __init__(self, model: ImageClassifier, image: ImageInput) -> None:
        super().__init__()
        self.image, self.model = image, model

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability of each class, (K,).

        Args:
            image: RGB, (H, W, 3), uint8.
        """
        x, _ = self.image(image)
        return self.model.head(self.model.extract_feat(x))[0].softmax(0)
