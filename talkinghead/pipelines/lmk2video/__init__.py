"""The parts of Lmk2Video's pipeline: windows, sampling, wavefront, conditions."""
