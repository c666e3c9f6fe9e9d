"""Methods: one LightningModule a file, and the plain networks, distributions and processes they are built from."""
