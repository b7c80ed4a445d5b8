"""What an artifact says of its quantisation, read with care and drawn as one page that stands alone."""
