"""Any network on any data set by any method of training, attacked in the end."""
