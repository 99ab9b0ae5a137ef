// Command kills kills conquer with SIGKILL at random moments while it trains and exports, and
// checks what is left. It prints a table, and fails if anything was lost.
//
//	go run ./tools/kills -binary build/bin/conquer -training 250 -exports 100
//
// A killed run is resumed until it ends. Its result and its losses must then be those of a run that
// was not killed, bit for bit. After each kill, the output folder must hold the whole old result or
// the whole new one.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var (
	program  = flag.String("binary", "build/bin/conquer", "the program to kill")
	training = flag.Int("training", 250, "number of kills of training runs")
	exports  = flag.Int("exports", 100, "number of kills of exports")
	seed     = flag.Uint64("seed", 1, "seed of the moments of the kills")
	draw     *rand.Rand
)

// row is a line of the table.
type row struct {
	what          string
	kills, during int // kills, and those that left temporary files
	ends, lost    int // runs that ended, and results that were lost
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	draw = rand.New(rand.NewPCG(*seed, 0))
	dir, err := os.MkdirTemp("", "kills")
	if err != nil {
		log.Fatal(err)
	}
	rows, err := all(dir)
	os.RemoveAll(dir)
	fmt.Println("| killed | kills | of which left temporary files | ended | lost |")
	fmt.Println("|---|---|---|---|---|")
	lost := 0
	for _, r := range rows {
		fmt.Printf("| %s | %d | %d | %d | %d |\n", r.what, r.kills, r.during, r.ends, r.lost)
		lost += r.lost
	}
	if err != nil {
		log.Fatal(err)
	}
	if lost > 0 {
		log.Fatalf("%d results were lost", lost)
	}
}

// all kills runs of all kinds.
func all(dir string) (rows []row, err error) {
	base := filepath.Join(dir, "base")
	if err := writeModel(base); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data.txt")
	text := strings.Repeat("round and round the tower the gulls go round\n", 60)
	if err := os.WriteFile(data, []byte(text), 0o666); err != nil {
		return nil, err
	}
	kinds := []struct {
		what  string
		flags []string
	}{
		{"training, hf", []string{"--save_format", "hf"}},
		{"training, native", []string{"--save_format", "native"}},
		{"training, hf, adapter", []string{"--save_format", "hf", "--lora_rank", "2"}},
		{"training, native, merged adapter", []string{"--save_format", "native",
			"--lora_rank", "2", "--merge"}},
	}
	for i, k := range kinds {
		n := (*training*(i+1))/len(kinds) - (*training*i)/len(kinds)
		flags := append([]string{"train", "--model_path", base, "--tokenizer", "char_tokenizer",
			"--data_path", data, "--pack", "--sequence_length", "32", "--batch_size", "1",
			"--steps", "24", "--checkpoint_steps", "1", "--resume", "--overwrite", "--threads",
			"1"}, k.flags...)
		log.Printf("%s: %d kills", k.what, n)
		r, err := killTraining(filepath.Join(dir, fmt.Sprint("training", i)), k.what, flags, n)
		if rows = append(rows, r); err != nil {
			return rows, err
		}
	}
	for i, format := range []string{"hf", "native", "meta", "gguf"} {
		n := (*exports*(i+1))/4 - (*exports*i)/4
		log.Printf("export, %s: %d kills", format, n)
		r, err := killExports(filepath.Join(dir, "export-"+format), format, base, n)
		if rows = append(rows, r); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// run runs the program, and kills it after a while unless that is 0.
func run(after time.Duration, flags ...string) (killed bool, err error) {
	p := exec.Command(*program, flags...)
	var stderr bytes.Buffer
	p.Stderr = &stderr
	if err := p.Start(); err != nil {
		return false, err
	}
	if after > 0 {
		timer := time.AfterFunc(after, func() { p.Process.Kill() })
		defer timer.Stop()
	}
	err = p.Wait()
	if after > 0 && p.ProcessState.ExitCode() == -1 {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(flags, " "), err, stderr.Bytes())
	}
	return false, err
}

// killTraining kills runs n times, each of which replaces an old result.
func killTraining(dir, what string, flags []string, n int) (r row, err error) {
	r.what = what
	old := map[string]string{"config.json": "{}", "model-00001-of-00001.safetensors": "old"}
	prepare := func(name string) (out string, err error) {
		out = filepath.Join(dir, name)
		if err := os.MkdirAll(out, 0o777); err != nil {
			return out, err
		}
		for name, text := range old {
			if err := os.WriteFile(filepath.Join(out, name), []byte(text), 0o666); err != nil {
				return out, err
			}
		}
		return out, os.WriteFile(filepath.Join(out, "notes.txt"), []byte("mine"), 0o666)
	}
	calm, err := prepare("calm")
	if err != nil {
		return r, err
	}
	begin := time.Now()
	if _, err := run(0, append(flags, "--output_path", calm)...); err != nil {
		return r, err
	}
	whole := time.Since(begin)
	fresh, wantLosses := result(calm), losses(calm)
	if len(wantLosses) == 0 {
		return r, errors.New("the run that was not killed has no losses")
	}
	for i := 0; r.kills < n; i++ {
		out, err := prepare(fmt.Sprint("run", i))
		if err != nil {
			return r, err
		}
		for ended := false; !ended; {
			after := time.Duration(0)
			if r.kills < n {
				after = time.Duration(1 + draw.Int64N(int64(whole)))
			}
			begin := time.Now()
			killed, err := run(after, append(flags, "--output_path", out)...)
			if err != nil {
				return r, err
			}
			if !killed { // other programs change the time that a run takes
				whole = (whole + time.Since(begin)) / 2
			}
			if ended = !killed; killed {
				r.kills++
				r.during += temporary(dir)
			}
			if got := result(out); !maps.Equal(got, old) && !maps.Equal(got, fresh) {
				r.lost++
				log.Printf("%s: after kill %d the result is neither the old nor the new one: %v",
					what, r.kills, slices.Sorted(maps.Keys(got)))
			}
		}
		r.ends++
		notes, _ := os.ReadFile(filepath.Join(out, "notes.txt"))
		if !maps.Equal(result(out), fresh) || !slices.Equal(losses(out), wantLosses) ||
			string(notes) != "mine" || temporary(dir) > 0 {
			r.lost++
			log.Printf("%s: run %d ended with another result, other losses or temporary files",
				what, i)
		}
		if err := os.RemoveAll(out); err != nil {
			return r, err
		}
	}
	return r, nil
}

// killExports kills exports of one of two models over the other n times.
func killExports(out, format, base string, n int) (r row, err error) {
	r.what = "export, " + format
	if format == "gguf" {
		out += ".gguf"
	}
	var want []map[string]string
	var whole time.Duration
	flags := func(i int) []string {
		dtype := []string{"float32", "bfloat16"}[i]
		return []string{"export", "--model_path", base, "--format", format, "--dtype", dtype,
			"--shard_size", "100KB", "--output_path", out, "--overwrite"}
	}
	for i := range 2 {
		begin := time.Now()
		if _, err := run(0, flags(i)...); err != nil {
			return r, err
		}
		whole = time.Since(begin)
		want = append(want, result(out))
	}
	for i := 0; r.kills < n; i++ {
		begin, after := time.Now(), whole/2+time.Duration(draw.Int64N(int64(whole/2)))
		killed, err := run(after, flags(i%2)...)
		if err != nil {
			return r, err
		}
		if !killed {
			whole = (whole + time.Since(begin)) / 2
		}
		got := result(out)
		switch whole := maps.Equal(got, want[i%2]); {
		case killed:
			r.kills++
			r.during += temporary(filepath.Dir(out))
			if !whole && !maps.Equal(got, want[0]) && !maps.Equal(got, want[1]) {
				r.lost++
				log.Printf("%s: after kill %d the result is neither the old nor the new one: %v",
					r.what, r.kills, slices.Sorted(maps.Keys(got)))
			}
		default:
			r.ends++
			if !whole || temporary(filepath.Dir(out)) > 0 {
				r.lost++
				log.Printf("%s: export %d ended with another result or temporary files", r.what, i)
			}
		}
	}
	if _, err := run(0, flags(0)...); err != nil {
		return r, err
	}
	if !maps.Equal(result(out), want[0]) || temporary(filepath.Dir(out)) > 0 {
		r.lost++
	}
	return r, os.RemoveAll(out)
}

// result returns the files of a result, or the one at path itself.
func result(path string) map[string]string {
	files := map[string]string{}
	filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		base := filepath.Base(name)
		others := []string{"checkpoints", "notes.txt", "metrics.jsonl", "loss.png"}
		switch {
		case err != nil || e.IsDir() && name == path:
		case isTemporary(base) || slices.Contains(others, base):
			if e.IsDir() {
				return fs.SkipDir
			}
		case !e.IsDir():
			text, _ := os.ReadFile(name)
			rest, _ := filepath.Rel(path, name)
			files[rest] = string(text)
		}
		return nil
	})
	return files
}

func isTemporary(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".partial") ||
		strings.HasSuffix(name, ".replaced")
}

// temporary is 1 if there are temporary files below a folder, else 0.
func temporary(dir string) (n int) {
	filepath.WalkDir(dir, func(name string, _ fs.DirEntry, _ error) error {
		if name != dir && isTemporary(filepath.Base(name)) {
			n = 1
		}
		return nil
	})
	return n
}

// losses returns the losses of a run's metrics, with their steps, in the digits of the file.
func losses(dir string) (list []string) {
	f, err := os.Open(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line struct{ Step, Loss json.Number }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return append(list, err.Error())
		}
		list = append(list, line.Step.String()+" "+line.Loss.String())
	}
	return list
}

// writeModel writes a small Llama with random weights.
func writeModel(dir string) error {
	const hidden, wide, vocabulary, layers = 64, 128, 256, 2
	config := fmt.Sprintf(`{"model_type":"llama","architectures":["LlamaForCausalLM"],
"vocab_size":%d,"hidden_size":%d,"intermediate_size":%d,"num_hidden_layers":%d,
"num_attention_heads":4,"num_key_value_heads":4,"max_position_embeddings":256,
"rms_norm_eps":1e-5,"rope_theta":10000,"tie_word_embeddings":false,"torch_dtype":"float32"}`,
		vocabulary, hidden, wide, layers)
	shapes := map[string][]int{"model.embed_tokens.weight": {vocabulary, hidden},
		"lm_head.weight": {vocabulary, hidden}, "model.norm.weight": {hidden}}
	for i := range layers {
		layer := fmt.Sprintf("model.layers.%d.", i)
		for name, shape := range map[string][]int{"input_layernorm": {hidden},
			"post_attention_layernorm": {hidden}, "self_attn.q_proj": {hidden, hidden},
			"self_attn.k_proj": {hidden, hidden}, "self_attn.v_proj": {hidden, hidden},
			"self_attn.o_proj": {hidden, hidden}, "mlp.gate_proj": {wide, hidden},
			"mlp.up_proj": {wide, hidden}, "mlp.down_proj": {hidden, wide}} {
			shapes[layer+name+".weight"] = shape
		}
	}
	type entry struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets []int  `json:"data_offsets"`
	}
	header, data := map[string]entry{}, []byte{}
	random := rand.New(rand.NewPCG(7, 0))
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		begin, n, scale := len(data), 1, float32(0.1)
		for _, size := range shapes[name] {
			n *= size
		}
		for range n {
			value := scale * float32(random.NormFloat64())
			if len(shapes[name]) == 1 {
				value = 1
			}
			data, _ = binary.Append(data, binary.LittleEndian, value)
		}
		header[name] = entry{"F32", shapes[name], []int{begin, len(data)}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	file = append(append(file, text...), data...)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o666); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "model.safetensors"), file, 0o666)
}
