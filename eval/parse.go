package eval

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.yaml.in/yaml/v4"
)

// parseTask reads the file of a task or of a group. Exactly one result is not nil.
func parseTask(file string, data []byte) (*config, *group, error) {
	r, err := readYAML(file, data, nil)
	if err != nil {
		return nil, nil, err
	}
	if _, ok := r.members["group"]; ok {
		g, err := r.group()
		return nil, g, err
	}
	c, err := r.config()
	return c, nil, err
}

// group reads a group.
func (r *reader) group() (*group, error) {
	g := &group{name: r.text("group"), alias: r.text("group_alias")}
	g.members = r.texts("task")
	for _, m := range r.list("aggregate_metric_list") {
		g.metrics = append(g.metrics, groupMetric{
			name: m.text("metric"), filters: m.texts("filter_list"),
			weighted: m.flag("weight_by_size", true),
		})
		if how := m.text("aggregation"); how != "" && how != "mean" {
			m.fail(m.lineOf("aggregation"), "aggregation is %.60q, expected mean", how)
		}
		m.finish("aggregate_metric_list: ")
		r.adopt(m)
	}
	g.version = r.version()
	r.seen["tag"] = true
	if g.name == "" || len(g.members) == 0 {
		r.fail(r.line, "a group needs a name and a list of tasks: `group: NAME` and `task: [A, B]`")
	}
	r.finish("")
	return g, r.err
}

// version reads metadata.version.
func (r *reader) version() any {
	var metadata map[string]any
	r.decode("metadata", "a mapping", &metadata)
	return metadata["version"]
}

// config reads a task.
func (r *reader) config() (*config, error) {
	c := &config{
		name: r.text("task"), alias: r.text("task_alias"), tags: r.texts("tag"),
		output:      outputType(r.text("output_type")),
		training:    r.text("training_split"),
		validation:  r.text("validation_split"),
		test:        r.text("test_split"),
		processDocs: r.functionOf("process_docs"), processResults: r.functionOf("process_results"),
		text: r.field("doc_to_text"), target: r.field("doc_to_target"),
		choice:      r.field("doc_to_choice"),
		description: r.text("description"), prefix: r.text("gen_prefix"),
		delimiter: " ", fewshotDelimiter: "\n\n",
		version: r.version(),
	}
	r.decode("target_delimiter", "a text", &c.delimiter)
	r.decode("fewshot_delimiter", "a text", &c.fewshotDelimiter)
	c.data = dataConfig{path: r.text("dataset_path"), name: r.text("dataset_name"),
		folder: folderOf(r.file)}
	r.dataKwargs(c)
	r.decode("num_fewshot", "a whole number", &c.shots)
	r.fewshot(c)
	r.metrics(c)
	r.generation(c)
	r.filters(c)
	if n := r.integer("repeats", 1); n != 1 {
		r.fail(r.lineOf("repeats"), "repeats is %d, expected 1: every document is asked once", n)
	}
	for _, ignored := range []string{"should_decontaminate", "doc_to_decontamination_query",
		"unsafe_code"} {
		r.seen[ignored] = true
	}
	r.check(c)
	r.finish("")
	if r.err != nil {
		return nil, r.err
	}
	return c, r.decodeRaw(c)
}

// check fails for a task that cannot be run.
func (r *reader) check(c *config) {
	outputs := []outputType{multipleChoice, likelihood, rolling, generation}
	switch {
	case c.name == "":
		r.fail(r.line, "`task: NAME` is missing")
	case c.output == "":
		c.output = generation
	case !slices.Contains(outputs, c.output):
		r.fail(r.lineOf("output_type"), "output_type is %.60q, expected %s, %s, %s or %s",
			c.output, outputs[0], outputs[1], outputs[2], outputs[3])
	}
	switch {
	case c.data.path == "":
		r.fail(r.line, "`dataset_path` is missing: a folder, json with "+
			"dataset_kwargs.data_files, or organization/name on the hub")
	case c.test == "" && c.validation == "":
		r.fail(r.line, "`test_split` or `validation_split` is missing: the documents to evaluate")
	case !c.target.given():
		r.fail(r.line, "`doc_to_target` is missing")
	case !c.text.given() && r.missing("doc_to_text"):
		r.fail(r.line, "`doc_to_text` is missing")
	case c.output == multipleChoice && !c.choice.given():
		r.fail(r.line, "`doc_to_choice` is missing")
	case c.target.number != nil && !c.choice.given():
		r.fail(r.lineOf("doc_to_target"), "doc_to_target is a number without doc_to_choice")
	}
}

func (r *reader) missing(name string) bool {
	_, ok := r.members[name]
	return !ok
}

// functionOf is function for a member that may be missing.
func (r *reader) functionOf(name string) string {
	if _, ok := r.node(name); !ok {
		return ""
	}
	return r.function(name)
}

// dataKwargs reads dataset_kwargs.
func (r *reader) dataKwargs(c *config) {
	kwargs := r.member("dataset_kwargs")
	if kwargs == nil {
		return
	}
	kwargs.seen["trust_remote_code"] = true
	if folder := kwargs.text("data_dir"); folder != "" {
		c.data.path = folder
	}
	if files := kwargs.member("data_files"); files != nil {
		c.data.files = map[string][]string{}
		for split := range files.members {
			c.data.files[split] = files.texts(split)
		}
		kwargs.adopt(files)
	}
	kwargs.finish("dataset_kwargs: ")
	r.adopt(kwargs)
}

// fewshot reads fewshot_split and fewshot_config.
func (r *reader) fewshot(c *config) {
	f := &c.fewshot
	*f = fewshotConfig{split: r.text("fewshot_split"), text: c.text, target: c.target,
		choice: c.choice, prefix: c.prefix, delimiter: c.delimiter, distance: c.fewshotDelimiter}
	own := r.member("fewshot_config")
	if own == nil {
		return
	}
	switch sampler := own.text("sampler"); sampler {
	case "", "default":
	case "first_n":
		f.firstN = true
	default:
		own.fail(own.lineOf("sampler"), "sampler is %.60q, expected default or first_n", sampler)
	}
	if split := own.text("split"); split != "" {
		f.split = split
	}
	for name, to := range map[string]*field{"doc_to_text": &f.text, "doc_to_target": &f.target,
		"doc_to_choice": &f.choice} {
		if given := own.field(name); given.given() {
			*to = given
		}
	}
	own.decode("gen_prefix", "a text", &f.prefix)
	own.decode("target_delimiter", "a text", &f.delimiter)
	own.decode("fewshot_delimiter", "a text", &f.distance)
	own.samples(f)
	own.finish("fewshot_config: ")
	r.adopt(own)
}

// samples reads fewshot_config.samples, examples that stand in the file.
func (r *reader) samples(f *fewshotConfig) {
	n, ok := r.node("samples")
	if !ok {
		return
	}
	var list []map[string]any
	r.decode("samples", "a list of documents", &list)
	for _, sample := range list {
		raw, err := json.Marshal(sample)
		var d document
		if err == nil {
			d, err = newDocument(raw, fmt.Sprintf("%s:%d", r.file, n.Line))
		}
		if err != nil {
			r.fail(n.Line, "samples: %v", err)
			return
		}
		f.samples = append(f.samples, d)
	}
}

// generation reads generation_kwargs.
func (r *reader) generation(c *config) {
	g := r.member("generation_kwargs")
	c.generation.until = []string{c.fewshotDelimiter}
	if g == nil {
		return
	}
	c.generation = g.generationOptions(c.generation)
	g.finish("generation_kwargs: ")
	r.decode("generation_kwargs", "a mapping", &c.generation.raw)
	r.adopt(g)
}

// generationOptions reads the members of generation_kwargs over those of c.
func (r *reader) generationOptions(c generationConfig) generationConfig {
	if _, ok := r.members["until"]; ok {
		c.until = r.texts("until")
	}
	for _, name := range []string{"max_completion_tokens", "max_tokens", "max_new_tokens",
		"max_gen_toks"} { // the last wins
		c.maxTokens = r.integer(name, c.maxTokens)
	}
	c.temperature = r.float("temperature", c.temperature)
	c.topP, c.minP = r.float("top_p", c.topP), r.float("min_p", c.minP)
	c.topK = r.integer("top_k", c.topK)
	c.sample = r.flag("do_sample", c.temperature > 0)
	return c
}

// filters reads filter_list.
func (r *reader) filters(c *config) {
	for _, f := range r.list("filter_list") {
		pipeline := filterConfig{name: f.text("name")}
		for _, step := range f.list("filter") {
			pipeline.steps = append(pipeline.steps, step.filterStep())
			f.adopt(step)
		}
		if pipeline.name == "" || len(pipeline.steps) == 0 {
			f.fail(f.line, "filter_list: a filter needs a name and a list of functions")
		}
		f.finish("filter_list: ")
		r.adopt(f)
		c.filters = append(c.filters, pipeline)
	}
}

// decodeRaw keeps the task as it is written, for results.
func (r *reader) decodeRaw(c *config) error {
	c.raw = map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(r.members)) {
		n := r.members[name]
		var v any
		if n.Tag == "!function" {
			v = n.Value
		} else if err := n.Decode(&v); err != nil {
			return fmt.Errorf("%s:%d: %s: %w", r.file, n.Line, name, err)
		}
		c.raw[name] = v
	}
	if _, err := json.Marshal(c.raw); err != nil {
		return fmt.Errorf("%s: the keys of a mapping must be texts: %w", r.file, err)
	}
	return nil
}

// parseGeneration reads --gen_kwargs, such as "temperature=0.5,max_gen_toks=32", over a task's own.
func parseGeneration(list map[string]string, c generationConfig) (generationConfig, error) {
	var members []*yaml.Node
	for _, name := range slices.Sorted(maps.Keys(list)) {
		members = append(members, &yaml.Node{Kind: yaml.ScalarNode, Value: name},
			&yaml.Node{Kind: yaml.ScalarNode, Value: list[name]})
	}
	r, err := newReader("generation options", &yaml.Node{Kind: yaml.MappingNode, Content: members})
	if err != nil {
		return c, err
	}
	c = r.generationOptions(c)
	r.finish("")
	if r.err != nil {
		return c, errors.New(r.err.Error())
	}
	return c, nil
}
