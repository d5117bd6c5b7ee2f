"""The self-check of a Jetson, `edgebert doctor --jetson`: a ladder of small checks on a real board, and one file to attach to a report.

edgebert was written without a Jetson at hand. Each rung shows one thing that could not be seen there; a rung that fails says why, those
that need it are skipped, and the ladder goes on. What may crash or hang is done by a process of its own.

    reference   the small graphs, and what ONNX Runtime answers to them
    ladder      which rungs there are, what each needs, and how they are climbed
    board       which board, which JetPack          bindings  TensorRT's Python module, its parser
    memory      CUDA: memory, copies, events        engines   build, run, parity, timing, what must be refused
    sensors     power mode, clocks, temperatures, rails, throttle counters
    process     starts and explains the child; `child` is it
    report      what was found: text, JSON, and how a device's own is read
    privacy     what is kept out of the file        output    where the file goes
"""
