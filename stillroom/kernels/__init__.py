"""The kernels of replay: fixed-point arithmetic on uint8 pixels, the same to the bit on every machine."""
