"""The science of superdiff-serve: diffusion models composed by superposition, without any web code."""
