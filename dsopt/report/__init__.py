"""What an artifact says of itself, its cost on a chip and its quantisation, read with care and drawn as one page that stands alone."""
