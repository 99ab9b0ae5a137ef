package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"conquer/internal/wrongfile"
)

// A model may be split into several GGUF files, which llama.cpp opens by the first:
// NAME-00001-of-00003.gguf and so on. The first holds the metadata. Each has the keys split.no
// (from 0), split.count and split.tensors.count, the number of tensors in all of them.

// splitName is the name of such a file.
var splitName = regexp.MustCompile(`^(.*)-([0-9]{5})-of-([0-9]{5})\.gguf$`)

// maxSplits is the largest number of parts: their numbers have five digits, and 16 bits.
const maxSplits = 1 << 16

// ggufPart is one file of a model.
type ggufPart struct {
	*ggufFile
	data []byte
	file *mapping
}

// readGGUFParts reads the header of file and, if it is the first of several that a model was split
// into, those of the others.
func readGGUFParts(o *opener, file *mapping) ([]ggufPart, error) {
	first, err := readGGUFPart(o, file)
	if err != nil {
		return nil, err
	}
	parts := []ggufPart{first}
	count := natural(first.metadata, "split.count")
	if count <= 1 {
		return parts, nil
	}
	name := splitName.FindStringSubmatch(filepath.Base(file.path))
	named := 0
	if name != nil {
		named, _ = strconv.Atoi(name[3])
	}
	if named != count || count > maxSplits {
		return nil, fmt.Errorf("%s: it is one of %d files that a model was split into, but is not "+
			"named NAME-00001-of-%05d.gguf and so on: give the files their names back", file.path,
			count, count)
	}
	path := func(i int) string {
		return filepath.Join(filepath.Dir(file.path),
			fmt.Sprintf("%s-%05d-of-%05d.gguf", name[1], i+1, count))
	}
	if no := natural(first.metadata, "split.no"); no != 0 {
		return nil, fmt.Errorf("%s: it is part %d of %d: open the first part, %s", file.path, no+1,
			count, path(0))
	}
	tensors := len(first.records)
	for i := 1; i < count; i++ {
		// A missing file is named before its number, which is not trusted, takes memory.
		if _, err := os.Stat(path(i)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: part %d of %d, %s, is missing: all parts belong into one "+
				"folder", file.path, i+1, count, path(i))
		}
		next, err := o.open(path(i))
		if err != nil {
			return nil, err
		}
		part, err := readGGUFPart(o, next)
		if err != nil {
			return nil, err
		}
		no, of := natural(part.metadata, "split.no"), natural(part.metadata, "split.count")
		if no != i || of != count {
			return nil, fmt.Errorf("%s: it says that it is part %d of %d, expected part %d of %d: "+
				"it is a file of another model", next.path, no+1, of, i+1, count)
		}
		tensors += len(part.records)
		parts = append(parts, part)
	}
	if total := natural(first.metadata, "split.tensors.count"); total >= 0 && total != tensors {
		return nil, fmt.Errorf("%s: the %d parts hold %d tensors, expected %d: a part is of "+
			"another model", file.path, count, tensors, total)
	}
	return parts, nil
}

func readGGUFPart(o *opener, file *mapping) (ggufPart, error) {
	parsed, err := parseGGUF(file.Bytes(), o.budget)
	if err != nil {
		err = fmt.Errorf("%s: %w", file.path, wrongfile.Explain(file.Bytes(), wrongfile.GGUF, err))
	}
	return ggufPart{parsed, file.Bytes(), file}, err
}
