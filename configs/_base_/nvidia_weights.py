# ImageNet weights from NVIDIA's model card; under CC BY-NC-SA 4.0.
nvidia_folder = 'https://huggingface.co/nvidia/GCViT/resolve/main/'
# ImageNet-1K, by arch
nvidia_weights = f'{nvidia_folder}gcvit_1k_{{}}.pth.tar'
# GC ViT-L, pretrained on ImageNet-21K, by image size: 224, 384 or 512
nvidia_weights_21k = f'{nvidia_folder}gcvit_21k_large_{{}}.pth.tar'
