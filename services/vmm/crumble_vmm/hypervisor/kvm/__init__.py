"""KVM: the CPU's own virtualization, on Linux hosts that have it. x86_64 so far."""
