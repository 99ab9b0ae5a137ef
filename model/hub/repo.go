package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"conquer/internal/atomicfile"
)

// Scheme is the prefix of the name of a repository on the Hugging Face Hub.
const Scheme = "hf://"

// A Repo is a repository on the Hugging Face Hub, or on the server that HF_ENDPOINT names.
type Repo struct {
	Kind     string // "models" or "datasets"
	Name     string // organization/name
	File     string // one file of it; "" for all files that are needed
	Revision string // a branch, a tag or a commit
}

var repoName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$`)

// Parse reads hf://organization/name[/file][@revision] as a repository of a kind.
func Parse(kind, ref string) (Repo, error) {
	rest, ok := strings.CutPrefix(ref, Scheme)
	rest, revision, given := strings.Cut(rest, "@")
	r := Repo{Kind: kind, Name: rest, Revision: "main"}
	if given {
		r.Revision = revision
	}
	if parts := strings.SplitN(rest, "/", 3); len(parts) == 3 {
		r.Name, r.File = parts[0]+"/"+parts[1], parts[2]
	}
	const longest = 255 // of a file's name: the revision is one
	if !ok || !repoName.MatchString(r.Name) || r.Revision == "" || r.Revision == "." ||
		strings.Contains(r.Revision, "..") || len(url.PathEscape(r.Revision)) > longest ||
		r.File != "" && !filepath.IsLocal(r.File) {
		return r, fmt.Errorf("%.120q is not a name on the hub: expected hf://organization/name, "+
			"followed by @revision for a revision other than main", ref)
	}
	return r, nil
}

// Cached returns the folder of a model that Hugging Face's libraries have downloaded: name is
// organization/name, and revision a branch, a tag or a commit, "" for main. No request is made.
func Cached(name, revision string) (dir string, ok bool) {
	root := os.Getenv("HF_HUB_CACHE")
	if home := os.Getenv("HF_HOME"); root == "" && home != "" {
		root = filepath.Join(home, "hub")
	}
	if cache, err := os.UserCacheDir(); root == "" && err == nil {
		root = filepath.Join(cache, "huggingface", "hub")
	}
	revision = cmp.Or(revision, "main")
	if !repoName.MatchString(name) || !filepath.IsLocal(revision) {
		return "", false
	}
	base := filepath.Join(root, "models--"+strings.ReplaceAll(name, "/", "--"))
	if commit, err := os.ReadFile(filepath.Join(base, "refs", revision)); err == nil {
		revision = strings.TrimSpace(string(commit))
	}
	dir = filepath.Join(base, "snapshots", revision)
	_, err := os.Stat(filepath.Join(dir, "config.json"))
	return dir, commitSum.MatchString(revision) && err == nil
}

// FetchModel downloads a model from the hub and returns the folder that [checkpoint.Open] opens, or
// the path of the .gguf file that ref names or that is the only one. It takes weights in
// safetensors or GGUF, configs and tokenizers. progress is told how many of how many bytes have
// arrived. The next call continues an interrupted download. A file gets its final name when its
// hash equals the hub's.
func FetchModel(ctx context.Context, ref string, progress func(done, total int64)) (string, error) {
	r, err := Parse("models", ref)
	if err != nil {
		return "", err
	}
	file := r.File
	dir, err := r.Snapshot(ctx, func(files []string) ([]string, error) {
		wanted, err := modelFiles(files, r)
		if err == nil && len(wanted) == 1 && strings.HasSuffix(wanted[0], ".gguf") {
			file = wanted[0]
		}
		return wanted, err
	}, progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.FromSlash(file)), nil
}

// modelFiles chooses the files of a repository that make up a model.
func modelFiles(files []string, r Repo) ([]string, error) {
	if r.File != "" {
		if !slices.Contains(files, r.File) {
			return nil, fmt.Errorf("%s%s has no file %s", Scheme, r.Name, r.File)
		}
		return []string{r.File}, nil
	}
	var weights, ggufs, small []string
	for _, name := range files {
		switch {
		case strings.Contains(name, "/"):
		case strings.HasSuffix(name, ".gguf"):
			ggufs = append(ggufs, name)
		case name == "adapter_model.safetensors",
			strings.HasPrefix(name, "model") && (strings.HasSuffix(name,
				".safetensors") || strings.HasSuffix(name, ".safetensors.index.json")):
			weights = append(weights, name)
		case slices.Contains(smallFiles, name):
			small = append(small, name)
		}
	}
	switch {
	case len(weights) > 0:
		return append(small, weights...), nil
	case len(ggufs) == 1:
		return ggufs, nil
	case len(ggufs) > 1:
		return nil, fmt.Errorf("%s%s holds several GGUF files: name one, such as %s%s/%s, of %s",
			Scheme, r.Name, Scheme, r.Name, ggufs[0], strings.Join(ggufs, ", "))
	}
	return nil, fmt.Errorf("%s%s holds no model in safetensors or GGUF", Scheme, r.Name)
}

// smallFiles are the files of a model beside its weights.
var smallFiles = []string{"config.json", "generation_config.json", "adapter_config.json",
	"tokenizer.json", "tokenizer_config.json",
	"tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
	"chat_template.jinja", "chat_template.json"}

// Names of this package's files in the folder of a snapshot.
const (
	lockFile = ".lock"
	// listFile holds the hub's listing, so that a commit that was fetched completely needs no
	// network.
	listFile   = ".listing.json"
	partFolder = ".incomplete" // downloads that are not complete, by hash
)

// Snapshot downloads the files that choose selects from the repository's names and returns their
// folder: below $XDG_CACHE_HOME/conquer/hub, or ~/.cache/conquer/hub, by kind, name and commit. If
// the cache of huggingface_hub (HF_HUB_CACHE) holds them, it returns the folder there. It makes no
// request for a commit that is at hand, nor if HF_HUB_OFFLINE is set. If the hub cannot be reached,
// it returns the copy at hand and tells [Notice].
func (r Repo) Snapshot(ctx context.Context, choose func(names []string) ([]string, error),
	progress func(done, total int64)) (string, error) {
	base, err := r.base()
	if err != nil {
		return "", err
	}
	list, shared, err := r.find(ctx, base)
	if err != nil {
		return "", err
	}
	var names []string
	for _, f := range list.Files {
		names = append(names, f.Name)
	}
	wanted, err := choose(names)
	if err != nil {
		return "", err
	}
	files, err := list.pick(wanted)
	if err != nil {
		return "", fmt.Errorf("%s%s: %w", Scheme, r.Name, err)
	}
	dir := filepath.Join(base, list.Commit)
	if !Verify && readStamps(dir).unchanged(dir, files) {
		return dir, nil
	}
	if shared == nil || shared.list.Commit != list.Commit {
		shared = r.inHubCache(list.Commit)
	}
	if shared != nil && shared.dir != dir {
		switch ok, err := shared.has(files); {
		case err != nil:
			return "", err
		case ok:
			return shared.dir, nil
		}
	}
	return r.complete(ctx, base, list, files, progress)
}

// complete fetches the files of a commit that its folder lacks or has damaged, and returns the
// folder.
func (r Repo) complete(ctx context.Context, base string, list *listing, files []repoFile,
	progress func(done, total int64)) (dir string, err error) {
	dir = filepath.Join(base, list.Commit)
	err = atomicfile.MkdirAll(filepath.Join(dir, partFolder))
	var unlock func()
	if err == nil {
		unlock, err = lock(ctx, filepath.Join(dir, lockFile))
	}
	d := &folder{repo: r, commit: list.Commit, dir: dir, stamps: readStamps(dir)}
	if unwritable(err) { // a complete copy can be used all the same
		if missing, failed := d.missing(files); failed != nil || len(missing) > 0 {
			return "", err
		}
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	defer unlock()
	d.stamps = readStamps(dir) // another process may have fetched
	missing, err := d.missing(files)
	if err != nil {
		return "", err
	}
	err = d.fetchAll(ctx, missing, progress)
	// Without its stamp, what has arrived before a failure would be hashed again.
	if err := errors.Join(err, d.stamps.write(dir)); err != nil {
		return "", err
	}
	if !d.stamps.unchanged(dir, files) {
		return "", fmt.Errorf("%s%s: files in %s were replaced while others were fetched: are "+
			"there two files whose names are one on this disk?", Scheme, r.Name, dir)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	if err := atomicfile.WriteBytes(filepath.Join(dir, listFile), text); err != nil {
		return "", err
	}
	atomicfile.Remove(filepath.Join(dir, partFolder)) // if no other download was interrupted
	return dir, r.remember(base, list.Commit)
}

var errNotTheHub = errors.New("does not answer as the Hugging Face Hub does: expected a commit " +
	"and its files (HF_ENDPOINT names the server)")

// ask gets the hub's listing of the revision. It gives up after that many failures of the network.
func (r Repo) ask(ctx context.Context, attempts int) (*listing, error) {
	var list *listing
	address := fmt.Sprintf("%s/api/%s/%s/revision/%s?blobs=true", endpoint(), r.Kind, r.Name,
		url.PathEscape(r.Revision))
	err := retry(ctx, "the hub", attempts, func() (bool, error) {
		text, _, err := page(ctx, address, listingBytes, authorization())
		if err != nil {
			return false, err
		}
		list, err = parseListing(text)
		if err == nil && commitSum.MatchString(r.Revision) && list.Commit != r.Revision {
			err = fmt.Errorf("lists commit %s in the place of %s", list.Commit, r.Revision)
		}
		if err != nil {
			err = refusal{fmt.Errorf("%s %w", redacted(address), err)}
		}
		return false, err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// explain turns an error of the hub into one that says what to do.
func (r Repo) explain(err error) error {
	var status *statusError
	name := Scheme + r.Name
	if r.Kind == "datasets" {
		name = DataScheme + r.Name
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.As(err, new(refusal)) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !errors.As(err, &status) {
		return fmt.Errorf("%s: the hub cannot be reached: %w", name, err)
	}
	switch status.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		if os.Getenv("HF_TOKEN") == "" {
			return fmt.Errorf("%s does not exist, is private, or requires that its terms are "+
				"accepted at %s/%s: set HF_TOKEN to a token that may read it (%w)", name,
				redacted(endpoint()), r.Name, err)
		}
		return fmt.Errorf("%s may not be read with the token in HF_TOKEN: is it right, and are "+
			"the terms at %s/%s accepted? (%w)", name, redacted(endpoint()), r.Name, err)
	case http.StatusNotFound:
		return fmt.Errorf("%s has no revision %s at %s, or does not exist (%w)", name, r.Revision,
			redacted(endpoint()), err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// endpoint is the hub's address.
func endpoint() string {
	if e := strings.TrimSuffix(os.Getenv("HF_ENDPOINT"), "/"); e != "" {
		return e
	}
	return "https://huggingface.co"
}

// authorization is the header with HF_TOKEN, which the hub alone gets: see checkRedirect.
func authorization() http.Header {
	if token := strings.TrimSpace(os.Getenv("HF_TOKEN")); token != "" {
		return http.Header{"Authorization": {"Bearer " + token}}
	}
	return nil
}

// pause is the wait before the second attempt; it doubles with each attempt.
var pause = time.Second

// retry calls f again after a failure of the network or the server, until it failed that many times
// in a row without progress. It tells Notice what it waits for.
func retry(ctx context.Context, what string, attempts int, f func() (moved bool, err error)) error {
	wait := pause
	for failures := 0; ; {
		moved, err := f()
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		var status *statusError
		if err == nil || errors.As(err,
			&status) && status.code < 500 && status.code != http.StatusTooManyRequests {
			return err
		}
		var local *os.PathError
		if failures++; moved {
			failures, wait = 1, pause
		}
		if errors.As(err, &local) || errors.As(err, new(refusal)) || failures >= attempts {
			return err
		}
		Notice(fmt.Sprintf("%s: %v; the next attempt is in %v", what, err, wait))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 30*time.Second)
	}
}
