"""Solutions of 09_pictures_and_sound.ipynb: each stands in for the cell that begins with the same line."""


# exercise 9.1: how many rows and columns of soft tokens
def cells(height, width, budget):
    """->  rows, columns"""
    f = math.sqrt(48**2 * budget / (height * width))
    return math.floor(f * height / 48), math.floor(f * width / 48)


# exercise 9.2: cut a picture into patches
def patches_of(pixels, size):
    """pixels: height width 3  ->  I X: one row for each patch, the upper row of patches first"""
    height, width, _ = pixels.shape
    grid = pixels.reshape(height // size, size, width // size, size, 3)
    return grid.swapaxes(1, 2).reshape(-1, size * size * 3)


# exercise 9.3: from patches to soft tokens
def pooled(x, positions, k):
    """x: I C   positions: I 2, column and row  ->  O C, the squares row by row"""
    column, row = positions.T // k
    square = column + row * (column.max() + 1)
    means = [x[square == o].mean(0) for o in range(square.max() + 1)]
    return np.stack(means) * math.sqrt(x.shape[1])


# exercise 9.4: one frame (np.fft.rfft takes the length 512 as its second argument, and pads with zeros)
def log_mel(y, w, F, floor):
    """y, w: Y   F: B M, bins of the transform to bands  ->  M"""
    return np.log(np.abs(np.fft.rfft(y * w, 512)) @ F + floor)
