"""Groups of jax's operations that several readers of programs need."""

# These move numbers or choose among them, and compute none.
MOVES = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather"),
    *(
        "dynamic_update_slice",
        "expand_dims",
        "iota",
        "optimization_barrier",
        "pad",
        "reshape",
        "rev",
    ),
    *("scatter", "select_n", "slice", "sort", "split", "squeeze", "stop_gradient", "transpose"),
}
# The result of these at a place depends only on the operands at the same place.
ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma"),
    *("div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag"),
    *("integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min"),
    *("mul", "ne", "neg", "nextafter", "not", "or", "pow", "real", "reduce_precision", "rem"),
    *("round", "rsqrt", "select_n", "sharding_constraint", "shift_left", "shift_right_arithmetic"),
    *("shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub"),
    *("tan", "tanh", "xor"),
}
# These combine all numbers along some axes into one.
REDUCTIONS = {
    *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod"),
    *("reduce_sum",),
}
