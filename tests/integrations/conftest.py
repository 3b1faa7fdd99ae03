from local_hub import hub, point_to_hub

__all__ = ['hub', 'point_to_hub']
