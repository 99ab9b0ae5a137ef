package torch

// TimeAdd is exported for BenchmarkAdd.
var TimeAdd = timeAdd
