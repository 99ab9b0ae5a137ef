package main

import (
	"cmp"
	"io"
	"os"
)

// stdout is standard output. It remembers that something could not be written, such as on a full
// disk, which most commands do not ask for.
var stdout = &printer{}

// printer writes to a writer, or to os.Stdout if it has none, and keeps the first error.
type printer struct {
	to  io.Writer
	err error
}

func (p *printer) Write(data []byte) (n int, err error) {
	if p.to != nil {
		n, err = p.to.Write(data)
	} else {
		n, err = os.Stdout.Write(data)
	}
	p.err = cmp.Or(p.err, err)
	return n, err
}
