package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTarget_KeepsCountsAndWhatElseItSays(t *testing.T) {
	ok := target{pkg: "p", name: "FuzzA", took: 2 * time.Second}
	ok.follow(strings.NewReader("fuzz: elapsed: 0s, gathering baseline coverage: 0/2 completed\n" +
		"fuzz: elapsed: 1s, execs: 7 (7/sec), new interesting: 1 (total: 3)\n" +
		"fuzz: elapsed: 2s, execs: 30 (23/sec), new interesting: 4 (total: 6)\nPASS\n"))
	bad := target{pkg: "p", name: "FuzzB", took: time.Second, err: errors.New("exit status 1")}
	bad.follow(strings.NewReader("fuzz: elapsed: 1s, execs: 9 (9/sec), new interesting: 0 " +
		"(total: 2)\n--- FAIL: FuzzB\n    index out of range\n" + strings.Repeat("x", 50000)))
	var out bytes.Buffer
	if failed := report(&out, []*target{&ok, &bad, {name: "FuzzC"}}); failed != 1 {
		t.Errorf("%d targets failed, expected 1", failed)
	}
	words := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"p.FuzzA 30 15 4 6 ok", "p.FuzzB 9 9 0 2 FAILED: exit status 1",
		"39 executions", "index out of range"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not in %.500s", want, words)
		}
	}
	if strings.Contains(words, "FuzzC") {
		t.Error("a target that did not run is in the table")
	}
}

func TestDeclared_FindsTargets(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "a_test.go"), []byte("package a\n\n"+
		"func FuzzOne(f *testing.F) {}\nfunc fuzzHelper(f *testing.F) {}\n"+
		"\tfunc FuzzIndented(f *testing.F) {\nfunc FuzzTwo_Names(f *testing.F) {\n"), 0o666)
	names, err := declared(dir, []string{"a_test.go"})
	if got := strings.Join(names, " "); err != nil || got != "FuzzOne FuzzTwo_Names" {
		t.Errorf("got %q %v", got, err)
	}
	if _, err := declared(dir, []string{"b_test.go"}); err == nil {
		t.Error("a missing file is no error")
	}
}
