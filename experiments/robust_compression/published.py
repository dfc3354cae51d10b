"""The source's figures as data: tables 4.1, 4.2 and C.1, in percent, of the original CIFAR-10.

Its curves and histograms are pictures without numbers; of them nothing is here.
"""

COLUMNS = ("Benign", "APGD-ce", "APGD-dlr", "FAB", "Square")

# Table 4.2: {network: {radius of training: {share kept: a figure for each of COLUMNS}}}, attacked at
# 8/255. What is left after an attack and those before it, but for the cells of RISES.
AUTO_ATTACK: dict[str, dict[float, dict[float, tuple[float, ...]]]] = {
    "ResNet": {
        0.1: {
            1.0: (77.25, 53.9, 44.2, 43.9, 43.9),
            0.5: (77.2, 53.4, 43.3, 42.4, 42.4),
            0.1: (66.7, 42.9, 38.8, 38.0, 38.0),
        },
        0.03: {
            1.0: (90.9, 36.9, 35.4, 35.5, 35.5),
            0.5: (90.0, 36.6, 35.5, 35.5, 35.5),
            0.1: (86.0, 29.9, 29.3, 29.2, 29.2),
        },
    },
    "MobileNet": {
        0.1: {
            1.0: (79.9, 47.2, 41.2, 40.8, 40.8),
            0.5: (79.7, 40.8, 38.8, 37.7, 37.7),
            0.1: (40.4, 28.8, 24.5, 24.0, 24.0),
        },
        0.03: {
            1.0: (89.8, 36.9, 35.8, 35.6, 32.6),
            0.5: (87.4, 36.5, 35.5, 35.5, 35.5),
            0.1: (36.8, 8.0, 3.0, 2.5, 2.5),
        },
    },
}

# Rows in which a figure rises from one attack to the next, which what is left of the images cannot.
RISES = (("ResNet", 0.03, 1.0),)

# Table 4.1: parameters, and accuracy of natural training on CIFAR-10 and CIFAR-100.
NATURAL = {"ResNet": (21e6, 94.0, 72.8), "MobileNet": (2e6, 93.2, 66.0)}

# Table C.1: natural, robust, and their mean probabilities: benign, PGD, CW; "epsilon = 0.1, 32 steps".
COMBINED: dict[str, dict[str, tuple[float, float, float]]] = {
    "ResNet": {
        "natural": (94.1, 1.3, 0.9),
        "robust": (76.8, 58.3, 54.0),
        "combined": (85.6, 82.2, 78.0),
    },
    "MobileNet": {
        "natural": (93.2, 0.8, 0.7),
        "robust": (70.1, 51.1, 46.4),
        "combined": (82.3, 82.0, 77.1),
    },
}
