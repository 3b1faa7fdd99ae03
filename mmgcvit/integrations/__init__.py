"""GC ViT in other frameworks, one module per framework.

Each module imports its framework and the backbone, and no other module of this package imports
them. mmengine is not needed. The maps are those of :class:`mmgcvit.GCViT` with the same weights.
"""
