package report

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// events writes a TensorBoard event file: TFRecord frames, each with a protobuf Event
// (https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto). The
// few fields that are needed are written by their numbers.
type events struct{ file *os.File }

const eventsPrefix = "events.out.tfevents."

// openEvents starts a new file in dir. TensorBoard reads the files of a folder as one run. A file
// that says it continues after `done` steps makes TensorBoard discard what it has read about later
// steps.
func openEvents(dir string, done int) (*events, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	now := time.Now()
	name := fmt.Sprintf(eventsPrefix+"%d.%s.%d.%d", now.Unix(), host, os.Getpid(),
		now.Nanosecond())
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	e := &events{f}
	if err = e.record(0, appendBytes(nil, 3, []byte("brain.Event:2"))); err == nil && done > 0 {
		start := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType),
			1) // SessionLog.status = START
		err = e.record(done+1, appendBytes(nil, 7, start))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return e, nil
}

// removeEvents removes the event files in dir, and dir if nothing else is in it.
func removeEvents(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), eventsPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if len(entries) > 0 {
		os.Remove(dir)
	}
	return err
}

func (e *events) close() { e.file.Close() }

// scalars writes the values of one step, keyed by tag.
func (e *events) scalars(step int, values map[string]float64) error {
	var summary []byte
	for _, tag := range slices.Sorted(maps.Keys(values)) {
		value := appendBytes(nil, 1, []byte(tag))
		value = protowire.AppendFixed32(protowire.AppendTag(value, 2, protowire.Fixed32Type),
			math.Float32bits(float32(values[tag])))
		summary = appendBytes(summary, 1, value)
	}
	return e.record(step, appendBytes(nil, 5, summary))
}

// text writes a text, which TensorBoard shows as Markdown.
func (e *events) text(step int, tag, text string) error {
	const stringType = 7                                     // DT_STRING
	plugin := appendBytes(nil, 1, []byte("text"))            // PluginData.plugin_name
	metadata := appendBytes(nil, 1, plugin)                  // SummaryMetadata.plugin_data
	one := protowire.AppendTag(nil, 1, protowire.VarintType) // TensorShapeProto.Dim.size
	shape := appendBytes(nil, 2, protowire.AppendVarint(one, 1))
	tensor := protowire.AppendTag(nil, 1, protowire.VarintType)
	tensor = protowire.AppendVarint(tensor, stringType)
	tensor = appendBytes(tensor, 2, shape)
	tensor = appendBytes(tensor, 8, []byte(strings.ToValidUTF8(text, "\ufffd")))
	value := appendBytes(nil, 1, []byte(tag))
	value = appendBytes(value, 8, tensor)
	value = appendBytes(value, 9, metadata)
	return e.record(step, appendBytes(nil, 5, appendBytes(nil, 1, value)))
}

func appendBytes(b []byte, field protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), content)
}

// record writes an Event with the given content as a frame: length, checksum of the length, event,
// checksum of the event.
func (e *events) record(step int, content []byte) error {
	seconds := float64(time.Now().UnixNano()) / 1e9
	event := protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type),
		math.Float64bits(seconds))
	event = protowire.AppendVarint(protowire.AppendTag(event, 2, protowire.VarintType),
		uint64(step))
	event = append(event, content...)
	frame := binary.LittleEndian.AppendUint64(nil, uint64(len(event)))
	frame = binary.LittleEndian.AppendUint32(frame, masked(frame))
	frame = append(frame, event...)
	frame = binary.LittleEndian.AppendUint32(frame, masked(event))
	if _, err := e.file.Write(frame); err != nil {
		return fmt.Errorf("writing TensorBoard events: %w", err)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// masked returns TFRecord's checksum: a rotated CRC-32C plus a constant, so that data may itself
// contain checksums.
func masked(data []byte) uint32 {
	sum := crc32.Checksum(data, castagnoli)
	return (sum>>15 | sum<<17) + 0xa282ead8
}
