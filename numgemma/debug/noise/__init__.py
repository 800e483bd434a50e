"""How large an error rounding alone makes.

In reading order:

    perturb  runs that are right and yet not equal: rounded, and summed, as another engine might
    rounding  engines that round what enters a product: llama.cpp, int8, FP8, NVFP4, mobile files
    unfinished  the finished runs of a floor that is not whole
    floor    the noise floor: the size of that error at every point, for one checkpoint and one prompt
"""
