package hub

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
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

var (
	repoName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$`)
	commitSum = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

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
	if !ok || !repoName.MatchString(r.Name) || r.Revision == "" || r.File != "" &&
		!filepath.IsLocal(r.File) {
		return r, fmt.Errorf("%.120q is not a name on the hub: expected hf://organization/name, "+
			"followed by @revision for a revision other than main", ref)
	}
	return r, nil
}

// A repoFile is a file as the hub lists it.
type repoFile struct {
	Name string `json:"rfilename"`
	Size int64  `json:"size"`
	Blob string `json:"blobId"` // git's SHA-1 of a small file
	LFS  *struct {
		SHA256 string `json:"sha256"`
		Size   int64  `json:"size"`
	} `json:"lfs"`
}

func (f *repoFile) size() int64 {
	if f.LFS != nil {
		return f.LFS.Size
	}
	return f.Size
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

// listing is the hub's description of a revision.
type listing struct {
	Commit string     `json:"sha"`
	Files  []repoFile `json:"siblings"`
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

// listFile holds the hub's listing beside the files, so that a commit that was fetched completely
// needs no network.
const listFile = ".listing.json"

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
	list, copy, err := r.find(ctx, base)
	if err != nil {
		return "", err
	}
	byName := map[string]repoFile{}
	var names []string
	for _, f := range list.Files {
		byName[f.Name] = f
		names = append(names, f.Name)
	}
	wanted, err := choose(names)
	if err != nil {
		return "", err
	}
	if copy == nil || copy.list.Commit != list.Commit {
		copy = r.inHubCache(list.Commit)
	}
	if copy != nil && copy.has(list, wanted) {
		return copy.dir, nil
	}
	if offline() {
		return "", fmt.Errorf("%s%s: %w, and the copy on this machine, %s, lacks some of its files",
			Scheme, r.Name, errOffline, copy.dir)
	}
	return r.download(ctx, base, list, wanted, byName, progress)
}

// download fetches files of a commit into its folder and returns the folder.
func (r Repo) download(ctx context.Context, base string, list *listing, wanted []string,
	byName map[string]repoFile, progress func(done, total int64)) (string, error) {
	dir := filepath.Join(base, list.Commit)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	var total, done int64
	for _, name := range wanted {
		f := byName[name]
		total += f.size()
	}
	for _, name := range wanted {
		f := byName[name]
		if !filepath.IsLocal(filepath.FromSlash(name)) || strings.ContainsAny(name,
			"\\\x00") || f.size() < 0 {
			return "", fmt.Errorf("%s%s lists a file with the invalid name %.80q", Scheme,
				r.Name, name)
		}
		before := done
		err := r.fetch(ctx, list.Commit, f, filepath.Join(dir, filepath.FromSlash(name)),
			func(n int64) {
				if progress != nil {
					progress(before+n, total)
				}
			})
		if err != nil {
			return "", fmt.Errorf("%s%s: %s: %w", Scheme, r.Name, name, err)
		}
		if done += f.size(); progress != nil {
			progress(done, total)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	err = atomicfile.Write(filepath.Join(dir, listFile),
		func(w io.Writer) error { _, err := w.Write(text); return err })
	if err != nil {
		return "", err
	}
	return dir, r.remember(base, list.Commit)
}

var errNotTheHub = errors.New("does not answer as the Hugging Face Hub does: expected a commit " +
	"and " +
	"its files (HF_ENDPOINT names the server)")

// ask gets the hub's listing of the revision. It gives up after that many failures of the network.
func (r Repo) ask(ctx context.Context, attempts int) (*listing, error) {
	list := new(listing)
	address := fmt.Sprintf("%s/api/%s/%s/revision/%s?blobs=true", endpoint(), r.Kind, r.Name,
		url.PathEscape(r.Revision))
	var text []byte
	err := retry(ctx, "the hub", attempts, func() (bool, error) {
		response, err := getWith(ctx, address, 0, authorization())
		if err != nil {
			return false, err
		}
		defer response.Body.Close()
		text, err = io.ReadAll(io.LimitReader(response.Body, 64<<20))
		return false, plain(err)
	})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, list); err != nil || !commitSum.MatchString(list.Commit) {
		return nil, fmt.Errorf("%s %w", address, errNotTheHub)
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
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, errNotTheHub) {
		return err
	}
	if !errors.As(err, &status) {
		return fmt.Errorf("%s: the hub cannot be reached: %w", name, err)
	}
	switch status.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		if os.Getenv("HF_TOKEN") == "" {
			return fmt.Errorf("%s does not exist, is private, or requires that its terms are "+
				"accepted at %s/%s: set HF_TOKEN to a token that may read it (%w)", name,
				endpoint(), r.Name, err)
		}
		return fmt.Errorf("%s may not be read with the token in HF_TOKEN: is it right, and are "+
			"the terms at %s/%s accepted? (%w)", name, endpoint(), r.Name, err)
	case http.StatusNotFound:
		return fmt.Errorf("%s has no revision %s at %s, or does not exist (%w)", name, r.Revision,
			endpoint(), err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// fetch downloads one file, unless it exists.
func (r Repo) fetch(ctx context.Context, commit string, f repoFile, to string,
	progress func(done int64)) error {
	if info, err := os.Stat(to); err == nil && info.Size() == f.size() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return err
	}
	prefix := ""
	if r.Kind != "models" {
		prefix = r.Kind + "/"
	}
	var escaped []string
	for _, part := range strings.Split(path.Clean(f.Name), "/") {
		escaped = append(escaped, url.PathEscape(part))
	}
	address := fmt.Sprintf("%s/%s%s/resolve/%s/%s", endpoint(), prefix, r.Name, commit,
		strings.Join(escaped, "/"))
	arrived := to + ".arrived"
	defer os.Remove(arrived)
	last := int64(-1)
	err := retry(ctx, f.Name, 5, func() (bool, error) {
		reached := int64(0)
		err := fetchTo(ctx, address, arrived, authorization(), func(done, _ int64) {
			reached = done
			progress(min(done, f.size()))
		})
		moved := reached > last // retry as long as each connection makes progress
		last = max(last, reached)
		return moved, err
	})
	if err != nil {
		return continued(err)
	}
	if err := f.verify(arrived); err != nil {
		return err
	}
	return os.Rename(arrived, to)
}

// verify compares a file with the hub's hash: SHA-256 of a large file, git's SHA-1 of a small one.
func (f *repoFile) verify(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	var h hash.Hash
	want, what := f.Blob, "SHA-1"
	if f.LFS != nil {
		h, want, what = sha256.New(), f.LFS.SHA256, "SHA-256"
	} else {
		h = sha1.New()
		fmt.Fprintf(h, "blob %d\x00", info.Size())
	}
	if _, err := io.Copy(h, file); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); info.Size() != f.size() || got != want {
		return fmt.Errorf("%d bytes with the %s %s arrived, the hub lists %d with %s: the "+
			"download is damaged and was removed", info.Size(), what, got, f.size(), want)
	}
	return nil
}

// endpoint is the hub's address.
func endpoint() string {
	if e := strings.TrimSuffix(os.Getenv("HF_ENDPOINT"), "/"); e != "" {
		return e
	}
	return "https://huggingface.co"
}

// authorization is the header with HF_TOKEN. net/http does not send it to another host that the hub
// redirects to.
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
		if errors.As(err, &local) || failures >= attempts {
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
