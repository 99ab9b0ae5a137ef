package checkpoint

// Format is a layout in which a model can be written. [Open] reads all of them.
type Format struct {
	Name, Summary string
	// File says that the format is one file, not a folder.
	File bool
	// Save writes source to path atomically, one tensor at a time. Options that do not concern the
	// format are ignored.
	Save func(path string, source Source, options Options) error
}

// Formats lists the layouts that this package writes.
var Formats = []Format{
	{Name: "hf", Summary: "a Hugging Face folder, as for transformers", Save: Save},
	{Name: "meta", Summary: "params.json and consolidated.NN.pth, for Meta's own code",
		Save: SaveMeta},
	{Name: "native", Summary: "this program's own, of which each process reads its part",
		Save: SaveNative},
	{Name: "gguf", Summary: "one file, for llama.cpp and ollama", File: true, Save: SaveGGUF},
}
