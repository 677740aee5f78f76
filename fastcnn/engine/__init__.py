"""The engine: layer lists become op lists, op lists become plans, plans run kernels."""
