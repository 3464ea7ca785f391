"""Reusable simulation parts: benches, memory model, Verilator runner."""
