"""What a run takes of memory and time, counted before it starts (docs/scaling.md).

    shapes    the sizes of a policy, and its parameters
    memory    a device's memory, part by part
    speed     a step's seconds, phase by phase, from the machine's rates in `conf/gpu/`
    forecast  the two put together: does it fit, what to change if not, hours, how far it scales

Imports pspo.config only; never torch.
"""
