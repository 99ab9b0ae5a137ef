package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"conquer/internal/atomicfile"
)

// Notice is called with a message when a download waits, and when a copy on this machine is used
// because the hub cannot be reached. Assign it before the first call.
var Notice = func(message string) {}

// offline reports whether the environment forbids requests, as huggingface_hub reads it.
func offline() bool {
	switch strings.ToUpper(os.Getenv("HF_HUB_OFFLINE")) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

var errOffline = errors.New("HF_HUB_OFFLINE is set")

// A snapshot is a copy of a revision on this machine.
type snapshot struct {
	dir  string
	list *listing
}

// has reports whether a copy in the cache of huggingface_hub holds files of a listing. A file there
// is a link to one that is named by its hash. With [Verify], the bytes are compared too.
func (s *snapshot) has(files []repoFile) (bool, error) {
	for _, f := range files {
		name := filepath.Join(s.dir, filepath.FromSlash(f.Name))
		info, err := os.Stat(name)
		if err != nil || info.Size() != f.size() {
			return false, nil
		}
		target, _ := os.Readlink(name)
		if sum := filepath.Base(target); fileSum.MatchString(sum) {
			if f.sum() != "" && f.sum() != sum {
				return false, nil
			}
			f.Blob, f.LFS = sum, nil
			f.Size = info.Size()
		}
		if !Verify {
			continue
		}
		switch err := f.verify(name); {
		case errors.Is(err, errDamaged):
			Notice(fmt.Sprintf("%s is damaged (%v): it is not used", name, err))
			return false, nil
		case err != nil:
			return false, err
		}
	}
	return true, nil
}

// base is the folder of the repository's snapshots.
func (r Repo) base() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep models in: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(cache, "conquer", "hub", r.Kind, filepath.FromSlash(r.Name)), nil
}

// reference is the file that holds the commit of a branch or tag when it was last fetched.
func (r Repo) reference(base string) string {
	return filepath.Join(base, "refs", url.PathEscape(r.Revision))
}

// remember records which commit the revision is.
func (r Repo) remember(base, commit string) error {
	file := r.reference(base)
	if err := atomicfile.MkdirAll(filepath.Dir(file)); err != nil {
		return err
	}
	return atomicfile.Write(file,
		func(w io.Writer) error { _, err := io.WriteString(w, commit); return err })
}

// atHand returns the copy of the revision on this machine: one that was fetched before, or one in
// the cache of huggingface_hub. It returns nil if there is none.
func (r Repo) atHand(base string) *snapshot {
	commit := r.Revision
	if text, err := os.ReadFile(r.reference(base)); err == nil {
		commit = string(text)
	}
	if s := fetched(base, commit); s != nil {
		return s
	}
	return r.inHubCache("")
}

// fetched returns the copy of a commit that was fetched before, or nil.
func fetched(base, commit string) *snapshot {
	s := &snapshot{dir: filepath.Join(base, commit), list: new(listing)}
	text, err := os.ReadFile(filepath.Join(s.dir, listFile))
	if !commitSum.MatchString(commit) || err != nil || json.Unmarshal(text, s.list) != nil ||
		s.list.Commit != commit {
		return nil
	}
	return s
}

// hubCache is the folder in which huggingface_hub keeps its downloads.
func hubCache() string {
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} {
		if dir := os.Getenv(name); dir != "" {
			return dir
		}
	}
	home := os.Getenv("HF_HOME")
	if home == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return ""
		}
		home = filepath.Join(cache, "huggingface")
	}
	return filepath.Join(home, "hub")
}

// inHubCache returns the copy of a commit in the cache of huggingface_hub, or nil. Without a
// commit, it is the revision's. Its layout is that of
// https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
func (r Repo) inHubCache(commit string) *snapshot {
	dir := filepath.Join(hubCache(), r.Kind+"--"+strings.ReplaceAll(r.Name, "/", "--"))
	if commit == "" {
		commit = r.Revision
		reference := filepath.FromSlash(r.Revision)
		if text, err := os.ReadFile(filepath.Join(dir, "refs", reference)); err == nil &&
			filepath.IsLocal(reference) {
			commit = strings.TrimSpace(string(text))
		}
	}
	if !commitSum.MatchString(commit) {
		return nil
	}
	s := &snapshot{filepath.Join(dir, "snapshots", commit), &listing{Commit: commit}}
	err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.dir, path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path) // of the file that a link leads to
		if err == nil {
			file := repoFile{Name: filepath.ToSlash(name), Size: info.Size()}
			s.list.Files = append(s.list.Files, file)
		}
		return nil
	})
	if err != nil || len(s.list.Files) == 0 {
		return nil
	}
	return s
}

// patience is how long a request may take if a copy is at hand.
var patience = time.Second

// find asks the hub for the revision's files. If the hub cannot be reached, or may not be asked, it
// returns the copy at hand.
func (r Repo) find(ctx context.Context, base string) (list *listing, copy *snapshot, err error) {
	copy = r.atHand(base)
	switch {
	case copy != nil && commitSum.MatchString(r.Revision):
		return copy.list, copy, nil // a commit does not change
	case offline() && copy == nil:
		return nil, nil, fmt.Errorf("%s%s: %w, and there is no copy of it on this machine", Scheme,
			r.Name, errOffline)
	case offline():
		return copy.list, copy, nil
	}
	if copy == nil {
		list, err = r.ask(ctx, 5)
		return list, nil, r.explain(err)
	}
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err = r.ask(brief, 1)
	var status *statusError
	if err == nil || ctx.Err() != nil || errors.As(err, &status) && status.code < 500 {
		return list, copy, r.explain(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", patience)
	}
	Notice(fmt.Sprintf("%s%s: the hub cannot be reached (%v): using the copy of commit %.12s",
		Scheme, r.Name, err, copy.list.Commit))
	return copy.list, copy, nil
}
