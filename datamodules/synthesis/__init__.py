"""Tables of numerical and categorical columns with a target."""
