package torch

// TimeAdd is exported for BenchmarkAdd.
var TimeAdd = timeAdd

// GroupedOnDevice is exported so that a CPU tests what GPUs run.
var GroupedOnDevice = groupedOnDevice
