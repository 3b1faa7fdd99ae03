# UPerNet with GC ViT-T on a segmentation set of your own; copy and change it.
#
#     data/my_dataset/images/{training,validation}/NAME.jpg
#     data/my_dataset/annotations/{training,validation}/NAME.png  one channel, values 0, 1, 2, …:
#                                                                 the class; 255: ignored
#
# Launch:   python tools/check_data.py configs/segmentation/custom_dataset.py
#           bash tools/dist_train.sh configs/segmentation/custom_dataset.py 8
# Hardware: 8 GPUs, 2 images each; with fewer add --auto-scale-lr
# Source:   as upernet_gcvit_t.py, which has the schedule and the weights (ImageNet's); to begin
#           from a segmentor instead: load_from = 'PATH'
# Result:   paper: none; ours: not trained
_base_ = './upernet_gcvit_t.py'

classes = ('background', 'circle', 'rectangle', 'triangle')  # of the values 0, 1, 2, 3
# other suffixes: img_suffix='.png'; value 0 ignored and classes from 1: reduce_zero_label=True
data = dict(type='BaseSegDataset', data_root='data/my_dataset', metainfo=dict(classes=classes))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
head = dict(num_classes=len(classes))
model = dict(decode_head=head, auxiliary_head=head)
