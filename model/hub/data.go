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
var dataSuffixes = []string{".parquet", ".arrow", ".jsonl", ".json", ".tar.gz", ".txt"}

// FetchData downloads a data set from the hub as [FetchModel] does a model, and returns its files.
// ref is hf://datasets/organization/name[@revision][:glob]. A glob without a slash matches the last
// component of names. Without a glob, the data files with train in their names are taken, or all
// data files if no name contains it.
func FetchData(ctx context.Context, ref string, progress func(done, total int64)) ([]string,
	error) {
	rest, ok := strings.CutPrefix(ref, DataScheme)
	name, glob, _ := strings.Cut(rest, ":")
	r, err := Parse("datasets", Scheme+name)
	if _, bad := path.Match(glob, ""); !ok || err != nil || r.File != "" || bad != nil {
		return nil, fmt.Errorf("%.120q is not a data set on the hub: expected "+
			"%sorganization/name, with @revision and :glob behind it where wanted", ref, DataScheme)
	}
	var wanted []string
	dir, err := r.Snapshot(ctx, func(names []string) ([]string, error) {
		if wanted = dataFiles(names, glob); len(wanted) == 0 {
			return nil, fmt.Errorf("%s: none of its %d files is wanted: expected one of %s, or "+
				"give a glob such as %s%s:*.jsonl", ref, len(names),
				strings.Join(dataSuffixes, ", "), DataScheme, r.Name)
		}
		return wanted, nil
	}, progress)
	if err != nil {
		return nil, err
	}
	for i, name := range wanted {
		wanted[i] = filepath.Join(dir, filepath.FromSlash(name))
	}
	return wanted, nil
}

// dataFiles chooses the training files.
func dataFiles(names []string, glob string) []string {
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
		})
	}
	for _, suffix := range dataSuffixes {
		all := matching(func(name string) bool { return strings.HasSuffix(name, suffix) })
		train := matching(func(name string) bool {
			return strings.HasSuffix(name,
				suffix) && strings.Contains(name, "train")
		})
		if len(train) > 0 {
			return train
		}
		if len(all) > 0 {
			return all
		}
	}
	return nil
}
