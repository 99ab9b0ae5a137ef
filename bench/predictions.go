package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/text/dataset"
)

// Prediction is one line of a predictions file.
type Prediction struct {
	ID                            int
	Prompt, Reference, Prediction string
}

const predictionsHeader = "id\tprompt\treference\tprediction"

// Tabs, line ends and backslashes of a text are escaped as in Go.
var (
	escapeTSV   = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`)
	unescapeTSV = strings.NewReplacer(`\\`, `\`, `\t`, "\t", `\n`, "\n", `\r`, "\r")
)

// WritePredictions writes a predictions file: a header line, then one line for each prediction
// with id, prompt, reference and prediction, separated by tabs. The write is atomic.
func WritePredictions(path string, list []Prediction) error {
	return atomicfile.Write(path, func(w io.Writer) error { return writePredictions(w, list) })
}

func writePredictions(w io.Writer, list []Prediction) error {
	if _, err := fmt.Fprintln(w, predictionsHeader); err != nil {
		return err
	}
	for _, p := range list {
		_, err := fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", p.ID, escapeTSV.Replace(p.Prompt),
			escapeTSV.Replace(p.Reference), escapeTSV.Replace(p.Prediction))
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadPredictions reads a predictions file. The header line may be missing.
func ReadPredictions(path string) ([]Prediction, error) {
	data, err := dataset.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, line, err := parsePredictions(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, line, err)
	}
	return list, nil
}

// parsePredictions returns the predictions, or an error and the number of its line.
func parsePredictions(data []byte) (list []Prediction, line int, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for lines.Scan() {
		line++
		text := lines.Text()
		if line == 1 && text == predictionsHeader {
			continue
		}
		fields := strings.Split(text, "\t")
		if len(fields) != 4 {
			return nil, line, fmt.Errorf("%d columns, expected 4 separated by tabs: "+
				"id, prompt, reference, prediction", len(fields))
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, line, fmt.Errorf("the id is %q, expected a whole number", fields[0])
		}
		for i := range fields {
			fields[i] = unescapeTSV.Replace(fields[i])
		}
		list = append(list, Prediction{id, fields[1], fields[2], fields[3]})
	}
	if len(list) == 0 {
		return nil, max(line, 1), errors.New("there are no predictions")
	}
	return list, 0, lines.Err()
}

const predictionsPrefix = "accuracy_"

// PredictionsName returns the name of the file for the predictions of a strategy. It replaces
// the colon, which some file systems do not allow.
func PredictionsName(strategy string) string {
	return predictionsPrefix + strings.ReplaceAll(strategy, ":", "_") + ".tsv"
}

// strategyOf returns the strategy in a name made by PredictionsName, else "".
func strategyOf(path string) string {
	name, ok := strings.CutPrefix(filepath.Base(path), predictionsPrefix)
	if !ok {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSuffix(name, ".tsv"), "_", ":")
}
