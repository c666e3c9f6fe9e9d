"""HI-VAE as in the GP-VAE's tables: the VAE with its likelihood summed over observed entries only.

Nazabal et al., Handling Incomplete Heterogeneous Data using VAEs, Pattern Recognition 2020, whose masked ELBO is all
that the row of Fortuin et al. (AISTATS 2020) shares with it: no mixture prior, no heterogeneous likelihoods.
"""

from torch import Tensor

from lightning_modules.imputation.vae import VAE


class HIVAE(VAE):
    """The VAE trained on observed entries; arguments as there."""

    def likelihood_mask(self, observed_mask: Tensor) -> Tensor:
        """Entries whose likelihood is maximised: the observed ones."""
        return observed_mask
