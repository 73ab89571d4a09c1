"""Numbers into SVG: pure functions, each figure 420 units wide, the column of a paper."""
