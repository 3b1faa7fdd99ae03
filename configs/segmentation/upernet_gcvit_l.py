# Old name of upernet_gcvit-l_160k_ade20k-512x512.py
_base_ = './upernet_gcvit-l_160k_ade20k-512x512.py'
_deprecation_ = dict(expected='configs/segmentation/upernet_gcvit-l_160k_ade20k-512x512.py')
