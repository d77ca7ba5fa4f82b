"""Files of weights that people have: their container, kind, model family and quantisation. No tensor is read."""
