"""Plain `nn.Module`s, functions and optimisers that the methods are built from; they import only torch and numpy."""
