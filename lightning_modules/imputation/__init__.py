"""Imputation of multivariate time series."""
