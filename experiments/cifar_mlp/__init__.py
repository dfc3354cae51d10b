"""Source 002 on CIFAR: a line, a linear classifier and one hidden layer, from the gradient up."""
