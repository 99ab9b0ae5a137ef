// Command fuzz runs the fuzz targets of packages, several at a time, and prints what each did:
//
//	fuzz [-time 1m] [-jobs N] [-match REGEXP] [-corpus FOLDER] [-exec COMMAND] PACKAGE...
//
// It exits with 1 if a target fails. As with `go test -fuzz`, the input that failed is then in the
// package's testdata/fuzz, where `go test` runs it again. Inputs that reached new code are kept in
// the corpus folder and are the start of the next run. It is Go's own by default, the folder fuzz
// in Go's cache: `go test -fuzz` continues with them, and `go clean -fuzzcache` removes them.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

type target struct {
	pkg, dir string // import path, folder
	binary   string // the compiled test
	name     string

	executions, interesting, corpus int
	took                            time.Duration
	err                             error
	output                          string // if it failed
}

func main() {
	each := flag.Duration("time", time.Minute, "time for each target")
	jobs := flag.Int("jobs", runtime.NumCPU(), "targets that run at a time")
	match := flag.String("match", "", "run the targets that match, in PACKAGE.TARGET")
	corpus := flag.String("corpus", "", "folder of the inputs that reached new code "+
		"(default: fuzz in Go's cache)")
	wrapper := flag.String("exec", "", "command that runs each target, such as \"nice -n 19\"")
	flag.Parse()
	pattern, err := regexp.Compile(*match)
	if err != nil || *jobs < 1 || *each <= 0 || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "fuzz: expected packages, a positive -time and -jobs, and a "+
			"regular expression for -match", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		fail(err)
	}
	if *corpus == "" {
		cache, err := exec.Command("go", "env", "GOCACHE").Output()
		if err != nil {
			fail(err)
		}
		*corpus = filepath.Join(strings.TrimSpace(string(cache)), "fuzz")
	}
	targets, err := compile(work, pattern, flag.Args())
	if err == nil && len(targets) == 0 {
		err = errors.New("no fuzz target matches")
	}
	if err != nil {
		os.RemoveAll(work)
		fail(err)
	}
	fmt.Printf("%d targets, %v each, %d at a time; corpus: %s\n", len(targets), *each, *jobs,
		*corpus)
	waiting := make(chan *target)
	var running sync.WaitGroup
	for range *jobs {
		running.Go(func() {
			for t := range waiting {
				if ctx.Err() == nil {
					t.run(ctx, strings.Fields(*wrapper), *each, *corpus)
				}
			}
		})
	}
	for _, t := range targets {
		waiting <- t
	}
	close(waiting)
	running.Wait()
	os.RemoveAll(work)
	if failed := report(os.Stdout, targets); failed > 0 {
		fail(fmt.Errorf("%d of %d targets failed", failed, len(targets)))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "fuzz:", err)
	os.Exit(1)
}

// compile builds the tests of the packages that have fuzz targets and lists the targets. Only the
// module's own packages count what they execute, which guides the fuzzer. With `go test -fuzz` all
// dependencies do, too: Go's fuzzer then spends most of its time on copying counters, and the C++
// of dependencies is compiled again.
func compile(work string, match *regexp.Regexp, packages []string) (all []*target, err error) {
	module, err := exec.Command("go", "list", "-m").Output()
	if err != nil {
		return nil, explained(err)
	}
	count := "-gcflags=" + strings.TrimSpace(string(module)) + "/...=-d=libfuzzer"
	list, err := exec.Command("go", append([]string{"list", "-f",
		"{{$d := .Dir}}{{.ImportPath}}\t{{.Dir}}{{range .TestGoFiles}}\t{{.}}{{end}}" +
			"{{range .XTestGoFiles}}\t{{.}}{{end}}", "--"}, packages...)...).Output()
	if err != nil {
		return nil, explained(err)
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		names, err := declared(fields[1], fields[2:])
		if err != nil {
			return nil, err
		}
		binary := filepath.Join(work, strings.ReplaceAll(fields[0], "/", "_"))
		var here []*target
		for _, name := range names {
			if match.MatchString(fields[0] + "." + name) {
				here = append(here, &target{pkg: fields[0], dir: fields[1], binary: binary,
					name: name})
			}
		}
		if here == nil {
			continue
		}
		build := exec.Command("go", "test", "-c", count, "-o", binary, fields[0])
		if _, err := build.Output(); err != nil {
			return nil, fmt.Errorf("%s: %w", fields[0], explained(err))
		}
		all = append(all, here...)
	}
	return all, nil
}

// explained is the error of a command with what the command said.
func explained(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

var declaration = regexp.MustCompile(`(?m)^func (Fuzz\w*)\(\w+ \*testing\.F\)`)

// declared returns the fuzz targets of a folder's test files. `go test -list` would have to link
// every package's tests first.
func declared(dir string, files []string) (names []string, err error) {
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		for _, found := range declaration.FindAllSubmatch(text, -1) {
			names = append(names, string(found[1]))
		}
	}
	return names, nil
}

// grace is the time that a target may take to start, and to end after its time is over. An input
// that takes longer is a fault.
const grace = 3 * time.Minute

// memory is a folder of files in memory, for the targets that must write some.
const memory = "/dev/shm"

func (t *target) run(ctx context.Context, wrapper []string, each time.Duration, corpus string) {
	// By default Go makes each new input smaller for a minute, which is all the time there is.
	args := append(wrapper[:len(wrapper):len(wrapper)], t.binary, "-test.run=^$",
		"-test.fuzz=^"+t.name+"$", "-test.fuzztime="+each.String(), "-test.fuzzminimizetime=50x",
		"-test.parallel=1", "-test.fuzzcachedir="+filepath.Join(corpus, t.pkg))
	ctx, cancel := context.WithTimeoutCause(ctx, each+grace,
		errors.New("hangs: it did not end in time"))
	defer cancel()
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Dir = t.dir
	c.Env = append(os.Environ(), "GOMAXPROCS=1", "OMP_NUM_THREADS=1")
	if _, err := os.Stat(memory); err == nil {
		c.Env = append(c.Env, "TMPDIR="+memory)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGINT) }
	c.WaitDelay = 10 * time.Second
	read, write := io.Pipe()
	c.Stdout, c.Stderr = write, write
	done := make(chan struct{})
	go func() {
		t.follow(read)
		close(done)
	}()
	start := time.Now()
	t.err = c.Run()
	if c.Process != nil { // a worker that hangs outlives its coordinator
		syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	}
	t.took = time.Since(start)
	write.Close()
	<-done
	if ctx.Err() != nil {
		t.err = context.Cause(ctx)
	}
	fmt.Println(t.line())
}

var progress = regexp.MustCompile(
	`^fuzz: elapsed: .*, execs: (\d+) .*new interesting: (\d+) \(total: (\d+)\)`)

// follow reads the output of a target. It keeps the counts of the last line of progress and the
// start of everything else.
func (t *target) follow(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if found := progress.FindStringSubmatch(line); found != nil {
			t.executions, _ = strconv.Atoi(found[1])
			t.interesting, _ = strconv.Atoi(found[2])
			t.corpus, _ = strconv.Atoi(found[3])
		} else if !strings.HasPrefix(line, "fuzz: elapsed:") && len(t.output) < 10000 {
			t.output += line
		}
		if err != nil {
			return
		}
	}
}

func (t *target) line() string {
	result := "ok"
	if t.err != nil {
		result = "FAILED: " + t.err.Error()
	}
	return fmt.Sprintf("%s.%s\t%d\t%.0f\t%d\t%d\t%s", t.pkg, t.name, t.executions,
		float64(t.executions)/max(t.took.Seconds(), 1e-9), t.interesting, t.corpus, result)
}

// report prints a table of the targets and the output of those that failed, and counts these.
func report(w io.Writer, targets []*target) (failed int) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "target\texecutions\tper second\tnew inputs\tcorpus\tresult")
	total := 0
	for _, t := range targets {
		if t.took == 0 {
			continue // interrupted before it ran
		}
		fmt.Fprintln(table, t.line())
		total += t.executions
	}
	table.Flush()
	fmt.Fprintf(w, "%d executions\n", total)
	for _, t := range targets {
		if t.err != nil {
			failed++
			fmt.Fprintf(w, "\n%s.%s: %v\n%s", t.pkg, t.name, t.err, t.output)
		}
	}
	return failed
}
