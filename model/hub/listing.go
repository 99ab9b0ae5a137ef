package hub

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// listing is the hub's description of a revision.
type listing struct {
	Commit string     `json:"sha"`
	Files  []repoFile `json:"siblings"`
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

// Limits of what the hub may list.
const (
	listingBytes = 64 << 20 // of a listing's JSON
	fileBytes    = 1 << 40  // of a file: the sum over all files of a listing fits an int64
)

// reserved are the names, in a snapshot's folder, of this package's own files.
var reserved = []string{lockFile, listFile, stampFile, partFolder}

// sum is what the hub lists as the file's hash: SHA-256 of a large file, git's SHA-1 of a small
// one, or "" if the listing is of a copy without hashes.
func (f *repoFile) sum() string {
	if f.LFS != nil {
		return f.LFS.SHA256
	}
	return f.Blob
}

func (f *repoFile) size() int64 {
	if f.LFS != nil {
		return f.LFS.Size
	}
	return f.Size
}

var (
	commitSum = regexp.MustCompile(`^[0-9a-f]{40}$`)
	fileSum   = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

// parseListing reads the hub's answer. Names without a place in a folder are an error.
func parseListing(text []byte) (*listing, error) {
	list := new(listing)
	if err := json.Unmarshal(text, list); err != nil || !commitSum.MatchString(list.Commit) {
		return nil, errNotTheHub
	}
	for _, f := range list.Files {
		if f.Name != path.Clean(f.Name) || !filepath.IsLocal(f.Name) || f.Name == "." ||
			strings.ContainsFunc(f.Name, unicode.IsControl) {
			return nil, fmt.Errorf("lists a file with the invalid name %.80q", f.Name)
		}
	}
	return list, nil
}

// pick returns the files of the given names, which the caller chose among those of the listing.
func (l *listing) pick(names []string) ([]repoFile, error) {
	byName := map[string]repoFile{}
	for _, f := range l.Files {
		if _, twice := byName[f.Name]; twice && slices.Contains(names, f.Name) {
			return nil, fmt.Errorf("%.80q is listed twice", f.Name)
		}
		byName[f.Name] = f
	}
	var files []repoFile
	for _, name := range names {
		f, listed := byName[name]
		first, _, _ := strings.Cut(name, "/")
		switch {
		case !listed:
			return nil, fmt.Errorf("%.80q is not listed", name)
		case strings.Contains(name, `\`):
			return nil, fmt.Errorf("the name %.80q holds a backslash, which separates folders on "+
				"Windows: rename the file on the hub", name)
		case slices.ContainsFunc(reserved, func(r string) bool {
			return strings.EqualFold(r, first)
		}):
			return nil, fmt.Errorf("%.80q has a name that this program keeps for itself", name)
		case f.size() < 0 || f.size() > fileBytes:
			return nil, fmt.Errorf("%.80q is listed with %d bytes, expected 0 to %d", name,
				f.size(), int64(fileBytes))
		case f.sum() != "" && !fileSum.MatchString(f.sum()):
			return nil, fmt.Errorf("%.80q is listed with the hash %.80q, expected SHA-256 or "+
				"SHA-1 in hexadecimal", name, f.sum())
		}
		files = append(files, f)
	}
	return files, nil
}

// errDamaged is the error of a file whose bytes are not those that the hub lists.
var errDamaged = errors.New("does not have the hub's hash")

// verify compares a file with the hub's hash.
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
	what := "SHA-256"
	switch len(f.sum()) {
	case 2 * sha256.Size:
		h = sha256.New()
	case 2 * sha1.Size:
		what, h = "SHA-1", sha1.New()
		fmt.Fprintf(h, "blob %d\x00", info.Size())
	default:
		return fmt.Errorf("the hub lists no hash to compare %s with", name)
	}
	if _, err := io.Copy(h, file); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); info.Size() != f.size() || got != f.sum() {
		return fmt.Errorf("%d bytes with the %s %s, the hub lists %d with %s: %w", info.Size(),
			what, got, f.size(), f.sum(), errDamaged)
	}
	return nil
}
