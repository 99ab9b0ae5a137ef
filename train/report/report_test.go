package report

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// writeLog logs 30 steps and 4 validations in dir and returns the steps.
func writeLog(t *testing.T, dir string, tensorBoard bool) (steps []Step) {
	t.Helper()
	l, err := OpenLog(dir, tensorBoard, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := 0; i <= 30; i++ {
		loss := 4 * math.Exp(-float64(i)/20)
		if i > 0 {
			s := Step{
				Step:    i,
				Loss:    loss + 0.2*float64(i%3),
				Rate:    1e-3,
				Norm:    1,
				Tokens:  10,
				Seconds: 0.1,
			}
			if steps, err = append(steps, s), l.Step(s); err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 {
			if err := l.Validation(Validation{Step: i, Loss: loss}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return steps
}

func TestPlotLoss_DrawsBothLosses(t *testing.T) {
	dir := t.TempDir()
	writeLog(t, dir, false)
	path := filepath.Join(t.TempDir(), "loss.png")
	if err := PlotLoss(filepath.Join(dir, MetricsFile), path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	blue, orange := 0, 0
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			switch r, g, b, _ := picture.At(x, y).RGBA(); {
			case r>>8 < 80 && g>>8 < 130 && b>>8 > 130:
				blue++
			case r>>8 > 190 && g>>8 < 130 && b>>8 < 80:
				orange++
			}
		}
	}
	if blue < 500 || orange < 500 {
		t.Errorf("%d blue and %d orange pixels: a line is missing", blue, orange)
	}
	if err := PlotLoss(filepath.Join(t.TempDir(), "none"), path); err == nil {
		t.Error("a missing file was plotted without an error")
	}
}

func TestConsole_WritesFirstAndEveryNthStep(t *testing.T) {
	var out bytes.Buffer
	c := NewConsole(&out, 2, 0, 4)
	c.Validation(Validation{Loss: 3})
	for i := 1; i <= 4; i++ {
		c.Step(
			Step{
				Step:    i,
				Loss:    float64(i),
				Norm:    1,
				Rate:    1e-4,
				Tokens:  100,
				Seconds: 0.5,
				Memory:  1e9,
				Skipped: i == 3,
			},
		)
	}
	c.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{
		"validation loss 3.0000", "step 1/4", "step 2/4", "step 3 skipped", "step 4/4",
	} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Fatalf("line %d of %q lacks %q", i, lines, want)
		}
	}
	for _, want := range []string{
		"loss 3.5000", "rate 1.00e-04", "norm 1.000", "200 tok/s", "1.00 GB",
	} {
		if !strings.Contains(lines[4], want) {
			t.Errorf("%q lacks %q", lines[4], want)
		}
	}
}

func TestLog_EventFilesHoldScalarsInFrames(t *testing.T) {
	dir := t.TempDir()
	want := writeLog(t, dir, true)
	files, err := filepath.Glob(filepath.Join(dir, "tensorboard", "events.out.tfevents.*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v event files, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	losses := map[uint64]float32{}
	for first := true; len(data) > 0; first = false {
		length := binary.LittleEndian.Uint64(data)
		checkFrame(t, data[:8], data[8:12])
		event := data[12 : 12+length]
		checkFrame(t, event, data[12+length:16+length])
		data = data[16+length:]
		if first {
			if !bytes.Contains(event, []byte("brain.Event:2")) {
				t.Error("the file does not start with its version")
			}
			continue
		}
		fields := protoFields(t, event)
		for _, value := range fields[5] {
			for _, v := range protoFields(t, value.([]byte))[1] {
				scalar := protoFields(t, v.([]byte))
				if string(scalar[1][0].([]byte)) == "train/loss" {
					losses[fields[2][0].(uint64)] = math.Float32frombits(scalar[2][0].(uint32))
				}
			}
		}
	}
	for _, s := range want {
		if losses[uint64(s.Step)] != float32(s.Loss) {
			t.Errorf("step %d has loss %v, want %v", s.Step, losses[uint64(s.Step)], s.Loss)
		}
	}
}

func TestLog_EventFilesHoldTexts(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answer := Answer{Step: 7, Number: 2, Question: "why?", Text: "so \xff", Seconds: 1}
	if err := l.Answer(answer); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "tensorboard", "events.out.tfevents.*"))
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	data = data[16+binary.LittleEndian.Uint64(data):] // after the version
	event := protoFields(t, data[12:12+binary.LittleEndian.Uint64(data)])
	value := protoFields(t, protoFields(t, event[5][0].([]byte))[1][0].([]byte))
	tensor := protoFields(t, value[8][0].([]byte))
	if event[2][0] != uint64(7) || string(value[1][0].([]byte)) != "answers/2" ||
		tensor[1][0] != uint64(7) || string(tensor[8][0].([]byte)) != "why?\n\nso \ufffd" ||
		!bytes.Contains(value[9][0].([]byte), []byte("text")) {
		t.Errorf("the event is %q", data)
	}
	text, err := os.ReadFile(filepath.Join(dir, MetricsFile))
	if want := `{"step":7,"question":"why?","answer":"so \ufffd","seconds":1}` + "\n"; err != nil ||
		string(text) != want {
		t.Errorf("%v: %s, want %s", err, text, want)
	}
	if steps, _, err := ReadLosses(filepath.Join(dir, MetricsFile)); err != nil || len(steps) > 0 {
		t.Errorf("an answer is read as %v, %v", steps, err)
	}
}

func checkFrame(t *testing.T, content, sum []byte) {
	t.Helper()
	crc := crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli))
	if want := (crc>>15 | crc<<17) + 0xa282ead8; binary.LittleEndian.Uint32(sum) != want {
		t.Fatal("a frame's checksum is wrong")
	}
}

// protoFields reads the fields of a protobuf message.
func protoFields(t *testing.T, b []byte) map[protowire.Number][]any {
	t.Helper()
	fields := map[protowire.Number][]any{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if b = b[n:]; n < 0 {
			t.Fatal("not a message")
		}
		var value any
		switch kind {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			value, n = protowire.ConsumeFixed32(b)
		case protowire.Fixed64Type:
			value, n = protowire.ConsumeFixed64(b)
		default:
			value, n = protowire.ConsumeBytes(b)
		}
		fields[number], b = append(fields[number], value), b[n:]
	}
	return fields
}
