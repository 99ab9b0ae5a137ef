package checkpoint

// A Format is a layout that a model can be written in. [Open] reads all of them.
type Format struct {
	Name, Summary string
	// File tells a format that is one file from one that is a folder.
	File bool
	// Save writes source to path in one step, one tensor at a time; what does not concern the format is ignored in options.
	Save func(path string, source Source, options Options) error
}

// Formats lists the layouts by which a model leaves this program.
var Formats = []Format{
	{Name: "hf", Summary: "a Hugging Face folder, for transformers and vLLM", Save: Save},
	{Name: "meta", Summary: "params.json and consolidated.NN.pth, for Meta's own code", Save: SaveMeta},
	{Name: "native", Summary: "this program's own, which every process of a run reads its part of", Save: SaveNative},
	{Name: "gguf", Summary: "one file, for llama.cpp and ollama", File: true, Save: SaveGGUF},
}
