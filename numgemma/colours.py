"""The colours of all figures: Okabe and Ito's, which stay apart for every kind of colour vision."""

BLUE, RED, GREEN, ORANGE, PINK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
GREY, BLACK, WHITE = "#767676", "#000000", "#FFFFFF"
HEAT = "cividis"  # the map for numbers, even in the same sense
