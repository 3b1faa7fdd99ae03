# ImageNet-1K weights from NVIDIA's model card, by arch; under CC BY-NC-SA 4.0.
nvidia_weights = 'https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_{}.pth.tar'
