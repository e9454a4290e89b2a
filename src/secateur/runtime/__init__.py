"""What the machine and the process give: forwards, ranks, devices, clocks, files, terminals."""
