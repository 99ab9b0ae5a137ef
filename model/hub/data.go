package hub

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// DataScheme is the prefix of the name of a data set on the Hugging Face Hub.
const DataScheme = Scheme + "datasets/"

// dataSuffixes are the suffixes of data files. If a repository has several kinds, the first in this
// list is taken.
var dataSuffixes = []string{".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json",
	".csv",
	".tsv", ".tar.gz", ".txt"}

// A Split chooses the files of one split, such as train, among the names of a data set's files.
// heldOut are the names of other splits.
type Split func(names []string) (files, heldOut []string, err error)

// FetchData downloads a data set from the hub as [FetchModel] does a model, and returns its files.
// ref is hf://datasets/organization/name[@revision][:glob]. A glob without a slash matches the last
// component of names. Without a glob, split chooses among the data files. heldOut names the files
// of other splits, which are not downloaded.
func FetchData(ctx context.Context, ref string, split Split,
	progress func(done, total int64)) (files, heldOut []string, err error) {
	rest, ok := strings.CutPrefix(ref, DataScheme)
	name, glob, _ := strings.Cut(rest, ":")
	r, err := Parse("datasets", Scheme+name)
	if _, bad := path.Match(glob, ""); !ok || err != nil || r.File != "" || bad != nil {
		return nil, nil, fmt.Errorf("%.120q is not a data set on the hub: expected "+
			"%sorganization/name, with @revision and :glob behind it where wanted", ref, DataScheme)
	}
	var chosen []string
	dir, err := r.Snapshot(ctx, func(names []string) ([]string, error) {
		var err error
		if chosen, heldOut, err = dataFiles(names, glob, split); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if len(chosen) == 0 {
			return nil, fmt.Errorf("%s: none of its %d files is wanted: expected one of %s, or "+
				"give a glob such as %s%s:*.jsonl", ref, len(names),
				strings.Join(dataSuffixes, ", "), DataScheme, r.Name)
		}
		return chosen, nil
	}, progress)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range chosen {
		files = append(files, filepath.Join(dir, filepath.FromSlash(name)))
	}
	return files, heldOut, nil
}

// dataFiles chooses the files that glob matches or, without a glob, those of the split.
func dataFiles(names []string, glob string, split Split) (files, heldOut []string, err error) {
	matching := func(match func(name string) bool) (list []string) {
		for _, name := range names {
			if match(name) {
				list = append(list, name)
			}
		}
		return list
	}
	if glob != "" {
		return matching(func(name string) bool {
			if !strings.Contains(glob, "/") {
				name = path.Base(name)
			}
			ok, _ := path.Match(glob, name)
			return ok
		}), nil, nil
	}
	for _, suffix := range dataSuffixes {
		kind := matching(func(name string) bool { return strings.HasSuffix(name, suffix) })
		files, heldOut, err = split(kind)
		if len(files) > 0 || err != nil {
			return files, heldOut, err
		}
	}
	return nil, nil, nil
}
