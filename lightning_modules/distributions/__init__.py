"""Distributions over time series: covariance kernels, Gaussian process priors, banded Gaussian posteriors."""
