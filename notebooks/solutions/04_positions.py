"""Solutions of 04_positions.ipynb: each stands in for the cell that begins with the same line."""


# exercise 4.1: the angles
def angles(positions, H, theta):
    """positions: T  ->  T H/2, the angle of each pair"""
    return positions[:, None] * theta ** (-2.0 * np.arange(H // 2) / H)


# exercise 4.2: turn every pair
def rope(x, cos, sin):
    """x: T N H   cos, sin: T H  ->  T N H"""
    a, b = np.split(x, 2, -1)
    cos, sin = (np.split(table[:, None], 2, -1)[0] for table in (cos, sin))  # T 1 H/2: the same for all heads
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# exercise 4.3: the angles of proportional rope
def proportional(positions, H, theta, turning):
    """turning: how many pairs turn  ->  T H/2"""
    speed = theta ** (-2.0 * np.arange(H // 2) / H)
    return positions[:, None] * np.where(np.arange(H // 2) < turning, speed, 0)


# exercise 4.4: the order of lanes for which rope_of_neighbours(x[..., order]) equals rope(x)[..., order]
def order_of_lanes(H):
    """->  H integers, each of 0 .. H - 1 once"""
    return np.arange(H).reshape(2, H // 2).T.ravel()


# exercise 4.5: do it yourself: the first point that differs by more than a tolerance
def first_difference(a, b, tolerance):
    """a, b: dumps with the same points, in order of execution.  -> name, or None.  By norm(a - b) / norm(a)"""
    for name in a:
        if np.linalg.norm(a[name] - b[name]) > tolerance * np.linalg.norm(a[name]):
            return name
    return None
