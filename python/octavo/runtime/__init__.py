"""What is built, what arrays are, and which kernels a call runs."""
