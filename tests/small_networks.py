"""Every network of the library: how many parameters it has, and sizes that tests can compute with."""

NETWORKS = {
    "mlp": (1_723_466, {"widths": (16, 8)}),
    "cnn": (141_610, {"widths": (8, 8, 8, 8, 8)}),
    "photo_cnn": (289_002, {"widths": (8, 8, 8, 8, 8, 8)}),
    "simple_cnn": (620_810, {"widths": (8, 16, 16), "hidden_width": 16}),
    "resnet_small": (2_777_674, {"widths": (8, 8, 8), "inner_widths": (4, 6, 8, 4, 6, 8)}),
    "resnet18": (11_173_962, {"stage_sizes": (1, 1), "widths": (8, 12)}),
    "resnet34": (
        21_282_122,
        {"stage_sizes": (2, 1), "widths": (8, 12), "stem_width": 6, "stem_shortcut": True},
    ),
    "resnet50": (23_520_842, {"stage_sizes": (1, 2), "widths": (16, 24)}),
    "preact_resnet18": (
        11_172_170,
        {"stage_sizes": (1, 2), "widths": (8, 12), "inner_widths": (4, 6, 8)},
    ),
    "wide_resnet": (36_479_194, {"stage_sizes": (1, 1), "widths": (8, 12)}),
    "vgg19": (20_040_522, {"stage_sizes": (1, 2), "widths": (8, 12, 16)}),
    "mobilenet_v1": (3_217_226, {"widths": (8,) * 14}),
    "mobilenet_v2": (2_296_922, {"widths": (8, 4, *(8,) * 7), "inner_widths": (12,) * 17}),
    "densenet121": (
        6_956_298,
        {"stage_sizes": (1, 2), "widths": (4, 6, 4), "transition_widths": (6,)},
    ),
}
COUNTS = {name: count for name, (count, _) in NETWORKS.items()}
SMALL = {name: sizes for name, (_, sizes) in NETWORKS.items()}
