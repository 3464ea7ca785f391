"""Configuration, Verilog emission, register outputs and the command line."""
