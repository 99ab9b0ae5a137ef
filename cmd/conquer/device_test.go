package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeDriver builds an NVIDIA driver that reports a CUDA version, and a libtorch_cuda.so that does
// not load. It returns their folder. A process loads them if its LD_LIBRARY_PATH begins with the
// folder.
func fakeDriver(t *testing.T, version int) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "driver.c")
	code := fmt.Sprintf("int cuDriverGetVersion(int *v) { *v = %d; return 0; }\nint "+
		"cuInit(unsigned f) { return 0; }\n"+
		"int cuDeviceGetCount(int *n) { *n = 0; return 0; }\n", version)
	if err := os.WriteFile(source, []byte(code), 0o666); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", filepath.Join(dir, "libcuda.so.1"),
		source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "libtorch_cuda.so"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// With the default device, an unusable GPU is reported once and the CPU is used. With --device
// cuda, the command fails with the remedy.
func TestDevice_DriverWithoutCUDAIsReportedOnce(t *testing.T) {
	for _, c := range []struct {
		version int
		reason  string
	}{
		{12080, "the NVIDIA driver is for CUDA 12.8, libtorch needs 13.0: update the driver"},
		{13000, "`make build CUDA=1`"},
	} {
		path := "LD_LIBRARY_PATH=" + fakeDriver(t, c.version) + ":" + os.Getenv("LD_LIBRARY_PATH")
		out := filepath.Join(t.TempDir(), "out")
		args := smallRun(t, out, "--nproc", "2", "--distributed", "ddp", "--steps", "1")
		for i, a := range args {
			if a == "--device" {
				args = append(args[:i:i], args[i+2:]...)
				break
			}
		}
		run, _, stderr := program(args...)
		run.Env = append(run.Env, path)
		if err := run.Run(); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		if said := stderr.String(); strings.Count(said,
			"conquer: using the CPU: no CUDA device can be used: ") != 1 ||
			!strings.Contains(said, c.reason) {
			t.Errorf("CUDA %d, the default device: %s", c.version, said)
		}
		run, _, stderr = program("bench", "ssd", "--device", "cuda", "--output_path", t.TempDir())
		run.Env = append(run.Env, path)
		if err := run.Run(); err == nil ||
			!strings.Contains(stderr.String(), "--device cuda: no CUDA device can be used: ") ||
			!strings.Contains(stderr.String(), c.reason) {
			t.Errorf("CUDA %d, --device cuda: %v, %s", c.version, err, stderr)
		}
	}
}
