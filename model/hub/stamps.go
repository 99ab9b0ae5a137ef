package hub

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"

	"conquer/internal/atomicfile"
)

// Verify makes every use of a downloaded file read all of its bytes and compare their hash with the
// hub's. Without it, a file's size and time of modification are compared with those that it had
// when its hash was last found right. Assign it before the first call.
var Verify = false

// stampFile holds the stamps of a folder's files.
const stampFile = ".stamps.json"

// A stamp is what a file looked like when its hash was found right.
type stamp struct {
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // nanoseconds since 1970
	Sum      string `json:"sum"`
}

// stamps are the stamps of a folder's files, by name.
type stamps map[string]stamp

// readStamps reads a folder's stamps. Files without one are hashed again.
func readStamps(dir string) stamps {
	s := stamps{}
	text, err := os.ReadFile(filepath.Join(dir, stampFile))
	if err != nil || json.Unmarshal(text, &s) != nil || s == nil {
		return stamps{}
	}
	return s
}

func (s stamps) write(dir string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(dir, stampFile), text)
}

// match reports whether a file looks as it did when its hash was found to be sum.
func (s stamps) match(name, sum string, info fs.FileInfo) bool {
	have, ok := s[name]
	return ok && have == stampOf(info, sum)
}

func stampOf(info fs.FileInfo, sum string) stamp {
	return stamp{info.Size(), info.ModTime().UnixNano(), sum}
}

// unchanged reports whether a folder holds files that look as they did when their hashes were found
// right.
func (s stamps) unchanged(dir string, files []repoFile) bool {
	for _, f := range files {
		info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.Name)))
		if err != nil || info.Size() != f.size() || !s.match(f.Name, f.sum(), info) {
			return false
		}
	}
	return true
}
