"""Sizes of networks that are written twice, in PyTorch and for jax."""

# Of MobileNetV2's stages: expansion, channels, blocks, stride of the first.
MOBILE_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
# Blocks in the stages of ResNet-50.
RESNET50_STAGES = (3, 4, 6, 3)
