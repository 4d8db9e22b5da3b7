"""What surrounds ddpm.py: a file for each modality, and one for each concept that the modalities share."""

import logging

logging.getLogger().setLevel(logging.ERROR)  # of GluonTS on files beside its own, of matplotlib on homes
