from .predictions import DumpLabelMaps, dump_predictions, merge_views

__all__ = ['DumpLabelMaps', 'dump_predictions', 'merge_views']
