"""What surrounds ddpm.py: a file for each modality, and one for each concept that the modalities share."""
