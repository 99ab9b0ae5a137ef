package torch

// TimeAdd is for the benchmark of what Go adds to an operation.
var TimeAdd = timeAdd
