package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// stopSignals are the signals that ask the program to finish: what a terminal sends for Ctrl-C and
// Ctrl-\ and when it closes, and SIGTERM. A signal that the caller had this process ignore, as
// nohup does with SIGHUP, stays ignored.
var stopSignals = func() []os.Signal {
	list := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		list = append(list, syscall.SIGHUP)
	}
	// The Go runtime forgets that SIGQUIT was ignored. A shell that starts a job in the background
	// of a script ignores it together with SIGINT.
	if signal.Ignored(os.Interrupt) {
		signal.Ignore(syscall.SIGQUIT)
		return list
	}
	return append(list, syscall.SIGQUIT)
}()

// untilStopped returns a context that the first of the signals cancels. The second ends the program
// at once, and so does patience after the first, unless it is 0: a program that waits for the other
// end of a pipe does not see the context. Under a launcher neither has an effect, because a
// launcher may repeat the terminal's signal. release ends the handling of signals.
func untilStopped(patience time.Duration) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancel(context.Background())
	first, second := make(chan os.Signal, 1), make(chan os.Signal, 1)
	released := make(chan struct{})
	signal.Notify(first, stopSignals...)
	go func() {
		select {
		case <-released:
			return
		case <-first:
			cancel()
		}
		if os.Getenv("WORLD_SIZE") != "" {
			return
		}
		signal.Stop(first)
		if !signal.Ignored(syscall.SIGQUIT) { // by default Go prints the stacks of all goroutines
			signal.Notify(second, syscall.SIGQUIT)
		}
		var over <-chan time.Time
		if patience > 0 {
			over = time.After(patience)
		}
		select {
		case <-released:
		case <-second:
			os.Exit(130)
		case <-over:
			os.Exit(130)
		}
	}()
	return ctx, func() {
		signal.Stop(first)
		signal.Stop(second)
		close(released)
		cancel()
	}
}
