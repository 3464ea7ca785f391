"""Memory side: AXI signatures, and the masters that read and write bursts."""
