package hub

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// ModelPath returns the path of the model that name stands for: a file or folder, a name of
// [Models], hf://organization/name, or organization/name if there is no folder of that organization
// here. It downloads what is not on this machine; progress, if not nil, is told how many of how
// many bytes have arrived.
func ModelPath(ctx context.Context, name string, progress func(done, total int64)) (string,
	error) {
	return locate(ctx, name, "model", progress, FetchModel)
}

// TokenizerPath is [ModelPath] for a tokenizer: it downloads only the tokenizer's files.
func TokenizerPath(ctx context.Context, name string, progress func(done, total int64)) (string,
	error) {
	return locate(ctx, name, "tokenizer", progress, fetchTokenizer)
}

// DataPaths returns the files that name stands for: a file or folder,
// hf://datasets/organization/name, or organization/name if there is no folder of that organization
// here. A name on the hub may end in @revision and :glob. [FetchData] explains those, split and
// heldOut.
func DataPaths(ctx context.Context, name string, split Split,
	progress func(done, total int64)) (paths, heldOut []string, err error) {
	if strings.HasPrefix(name, DataScheme) {
		return FetchData(ctx, name, split, progress)
	}
	if exists(name) {
		return []string{name}, nil, nil
	}
	repo, _, _ := strings.Cut(name, ":")
	if !implied(repo) {
		return nil, nil, missing(name, "file or folder", DataScheme+repo)
	}
	paths, heldOut, err = FetchData(ctx, DataScheme+name, split, progress)
	if err != nil {
		return nil, nil, notHere(name, err)
	}
	return paths, heldOut, nil
}

// OnHub reports whether name stands for something on the hub, and not for a path: it has the scheme
// hf://, or it reads organization/name and nothing here has the name of the organization.
func OnHub(name string) bool {
	repo, _, _ := strings.Cut(name, ":")
	return strings.HasPrefix(name, Scheme) || !exists(name) && implied(repo)
}

func locate(ctx context.Context, name, what string, progress func(done, total int64),
	fetch func(context.Context, string, func(done, total int64)) (string, error)) (string, error) {
	if strings.HasPrefix(name, Scheme) {
		return fetch(ctx, name, progress)
	}
	if exists(name) {
		return name, nil
	}
	if _, known := Find(name); known {
		return Fetch(ctx, name, progress)
	}
	if !implied(name) {
		var known []string
		for _, m := range Models {
			known = append(known, m.Name)
		}
		return "", fmt.Errorf("%w (known models: %s)", missing(name, "file, folder or known "+what,
			Scheme+name), strings.Join(known, ", "))
	}
	path, err := fetch(ctx, Scheme+name, progress)
	if err != nil {
		return "", notHere(name, err)
	}
	return path, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// fileSuffixes end names of files, which no repository has.
var fileSuffixes = append([]string{".csv", ".tsv", ".gz", ".zst", ".md", ".gguf", ".safetensors",
	".bin", ".pt", ".pth", ".model"}, dataSuffixes...)

// implied reports whether name is organization/name[@revision], and nothing on this machine has the
// name of the organization. Otherwise it is more likely a mistyped path.
func implied(name string) bool {
	name, _, _ = strings.Cut(name, "@")
	organization, _, _ := strings.Cut(name, "/")
	return repoName.MatchString(name) && !slices.Contains(fileSuffixes, path.Ext(name)) &&
		!exists(organization)
}

func missing(name, what, onHub string) error {
	organization, _, slash := strings.Cut(name, "/")
	if slash && exists(organization) && !strings.HasPrefix(name, "/") {
		return fmt.Errorf("there is no %s %s in the folder %s; on the Hugging Face Hub it would "+
			"be "+
			"%s", what, name, organization, onHub)
	}
	return fmt.Errorf("there is no %s %s", what, name)
}

func notHere(name string, err error) error {
	return fmt.Errorf("%s is not a file or folder here, and was sought on the Hugging Face Hub: %w",
		name, err)
}

// tokenizerFiles are those of smallFiles that belong to a tokenizer.
func tokenizerFiles() []string {
	return slices.DeleteFunc(slices.Clone(smallFiles), func(name string) bool {
		return name == "generation_config.json" || name == "adapter_config.json"
	})
}

func fetchTokenizer(ctx context.Context, ref string, progress func(done, total int64)) (string,
	error) {
	r, err := Parse("models", ref)
	if err != nil {
		return "", err
	}
	return r.Snapshot(ctx, func(names []string) ([]string, error) {
		wanted := slices.DeleteFunc(tokenizerFiles(), func(name string) bool {
			return !slices.Contains(names, name)
		})
		if !slices.Contains(wanted, "tokenizer.json") && !slices.Contains(wanted,
			"tokenizer.model") {
			return nil, fmt.Errorf("%s%s has no tokenizer.json or tokenizer.model", Scheme, r.Name)
		}
		return wanted, nil
	}, progress)
}
