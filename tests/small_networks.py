"""Sizes of every network that tests can compute with."""

SMALL = {
    "mlp": {"widths": (16, 8)},
    "cnn": {"widths": (8, 8, 8, 8, 8)},
    "photo_cnn": {"widths": (8, 8, 8, 8, 8, 8)},
    "simple_cnn": {"widths": (8, 16, 16), "hidden_width": 16},
    "resnet_small": {"widths": (8, 8, 8), "inner_widths": (4, 6, 8, 4, 6, 8)},
    "resnet18": {"stage_sizes": (1, 1), "widths": (8, 12)},
    "resnet34": {"stage_sizes": (2, 1), "widths": (8, 12), "stem_width": 6, "stem_shortcut": True},
    "resnet50": {"stage_sizes": (1, 2), "widths": (16, 24)},
    "preact_resnet18": {"stage_sizes": (1, 2), "widths": (8, 12), "inner_widths": (4, 6, 8)},
    "wide_resnet": {"stage_sizes": (1, 1), "widths": (8, 12)},
    "vgg19": {"stage_sizes": (1, 2), "widths": (8, 12, 16)},
    "mobilenet_v1": {"widths": (8,) * 14},
    "mobilenet_v2": {"widths": (8, 4, *(8,) * 7), "inner_widths": (12,) * 17},
    "densenet121": {"stage_sizes": (1, 2), "widths": (4, 6, 4), "transition_widths": (6,)},
}
