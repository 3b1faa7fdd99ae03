# ImageNet-1K weights of NVIDIA's model card, by the name of the arch; under CC BY-NC-SA 4.0.
nvidia_weights = 'https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_{}.pth.tar'
